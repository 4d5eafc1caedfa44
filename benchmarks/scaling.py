"""What do more experts cost on a CPU, when each token still visits two?

The arithmetic stays the same; what grows are the weights that are read and the number of matrix products,
each of fewer rows. Width 768, experts of 3,072, random tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from moembed.runs.bench import Options, Row, interleave, time_row

from . import layers

EXPERTS = (8, 16, 32, 64)


def rows(options: Options) -> Iterator[Row]:
    tokens = 2048 if options.quick else 8192
    dtype = layers.native("cpu")
    fed = layers.batches(tokens, dtype, options.repeats)
    contenders = {
        f"{count} experts": layers.forward(layers.run(layers.experts(count, dtype, served=True)), fed)
        for count in EXPERTS
    }
    with torch.inference_mode():
        timings = interleave(contenders, options.repeats)
    question = f"forward, {tokens:,} tokens, {layers.label(dtype)}"
    few, *more = contenders
    yield time_row(question, timings, few)
    for name in more:
        yield time_row(question, timings, name, few, "<= 1.4" if name == more[-1] else None)
