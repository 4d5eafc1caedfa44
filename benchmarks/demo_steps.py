"""Some steps of the demo's training with the moembed of one source tree: a process of `benchmarks.demo`.

It imports only what every version of the package has had since it has a demo.
"""

import json
import sys

del sys.path[0]  # the folder of this file: its names are not for other libraries
from pathlib import Path  # noqa: E402
from tempfile import TemporaryDirectory  # noqa: E402


def main() -> None:
    tree, pairs, steps, threads = sys.argv[1:]
    import torch

    import moembed
    from moembed.data.sources import Source
    from moembed.folder.bases import locate_base
    from moembed.folder.read import read_folder
    from moembed.runs.demo import recipe
    from moembed.runs.train import build
    from moembed.training.contrastive.task import Mixture
    from moembed.training.contrastive.train import train_contrastive
    from moembed.types import Pair

    if not Path(moembed.__file__).is_relative_to(tree):
        raise SystemExit(f"{moembed.__file__} was imported instead of the package in {tree}")
    torch.set_num_threads(int(threads))
    parts = read_folder(locate_base("minilm"))
    source = Source.from_pairs(
        "docstrings", [Pair(*pair) for pair in json.loads(Path(pairs).read_text("utf-8"))]
    )
    with TemporaryDirectory() as place:
        plan = recipe("minilm", Path(place) / "run", 5.0, 0, parts.tokenizer.max_length)
        plan = plan.model_copy(update={"minutes": None, "steps": int(steps)})
        trained = train_contrastive(
            plan, build(parts, plan), Mixture([source]), Path(place) / "run", record=plan
        )
    print(json.dumps({"seconds": trained.seconds, "pairs": trained.pairs}))


if __name__ == "__main__":
    main()
