"""A small folder with all that gpu.yaml needs, for a machine that has a GPU and no network.

Usage: python gpu_pack.py MOEMBED_DATA OUT [layers] [min_count]

Writes OUT/base, the first ``layers`` layers (3) of multilingual-e5-small in bfloat16, with the pieces of its
vocabulary that the training pairs use ``min_count`` times (50) or more, and beside it the pairs and tasks of
gpu.yaml. It stands in for MOEMBED_DATA: `make gpu-ablation MOEMBED_DATA=OUT`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from moembed.data.sources import SourceConfig, load_source
from moembed.encoding import View
from moembed.folder.bases import locate_base
from moembed.folder.read import read_folder
from moembed.folder.write import write_folder
from moembed.inference.member import member
from moembed.weights.pieces import tokenizer_files
from moembed.weights.trim import trim
from moembed.weights.vocabulary import with_tokenizer

GRID = Path(__file__).with_name("gpu.yaml")


def pack(data: Path, out: Path, layers: int = 3, min_count: int = 50) -> None:
    grid = yaml.safe_load(GRID.read_text())
    files = [Path(source["path"]).relative_to("${MOEMBED_DATA}") for source in grid["recipe"]["data"]]
    tasks = [Path(task).relative_to("${MOEMBED_DATA}") for task in grid["tasks"]]

    # ---- pairs and tasks as they are
    for file in files:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / file, out / file)
    for task in tasks:
        shutil.copytree(data / task, out / task, dirs_exist_ok=True)

    # ---- the base, in layers, pieces and precision
    def texts() -> Iterator[str]:
        for file in files:
            for pair in load_source(SourceConfig(path=str(data / file))):
                yield from (pair.query, pair.document)

    parts = member(read_folder(locate_base("me5-small")), View(layers=layers))
    backend = trim(parts.tokenizer.backend, texts, min_count)
    names = tokenizer_files(backend, parts.tokenizer.max_length, parts.files)
    parts, _ = with_tokenizer(parts, backend, names)
    state = {name: tensor.to(torch.bfloat16) for name, tensor in parts.state.items()}
    write_folder(out / "base", replace(parts, state=state))

    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 2**20:.1f} MiB, {parts.spec.vocab_size:,} pieces, {layers} layers")


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    pack(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
