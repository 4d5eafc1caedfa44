"""A process of `benchmarks.start`: it starts, loads a model, embeds, and prints a line of JSON.

Nothing but `moembed` is imported, and nothing is imported before the clock runs.
"""

import json
import sys
import time

del sys.path[0]  # the folder of this file: its names are not for other libraries
started = time.perf_counter()


def main() -> None:
    folder, dtype, threads, file = sys.argv[1:]
    with open(file, encoding="utf-8") as stream:
        asked = json.load(stream)  # the query, and the texts of the two calls

    from moembed import Embedder

    imported = time.perf_counter()
    import torch

    torch.set_num_threads(int(threads))
    model = Embedder.from_pretrained(folder, dtype=dtype, device="cpu")
    loaded = time.perf_counter()
    seconds = {"import": imported - started, "load": loaded - imported}
    for name, texts in asked:
        start = time.perf_counter()
        model.encode(texts)
        seconds[name] = time.perf_counter() - start

    from moembed.runs.bench import resident_memory

    print(json.dumps({"seconds": seconds, "peak": resident_memory(peak=True)}))


if __name__ == "__main__":
    main()
