"""How long does it take to look 1,000 tokens up in a compressed table of words?

Tables of the sizes of MiniLM and of multilingual-e5-small with random values, which cost as much as others,
each of the largest size within a seventh of the bytes of the floats, which is what int4 has. Tokens are drawn
as words are used: the n-th most frequent about 1 / n as often as the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from moembed.model.embeddings import table
from moembed.model.words.codebooks import LearnedProduct
from moembed.model.words.compressors import COMPRESSORS
from moembed.model.words.rows import PrunedRows
from moembed.model.words.table import WordTable
from moembed.runs.bench import Options, Row, interleave, time_row

SHAPES = {"minilm": (30_522, 384), "me5-small": (250_037, 384)}
TOKENS, RATIO, FLOATS = 1000, 0.145, "floats"


@torch.inference_mode()
def rows(options: Options) -> Iterator[Row]:
    for name, (vocabulary, width) in SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        token_T = (vocabulary ** torch.rand(TOKENS, generator=generator)).long()
        tables: dict[str, nn.Module] = {FLOATS: table(vocabulary, width)}
        for method, kind in COMPRESSORS.items():
            if kind is LearnedProduct:  # serves as pq
                continue
            config = kind.sized(vocabulary, width, None if method.startswith("int") else RATIO, None)
            make: type = kind
            tables[method] = make(config, vocabulary, width)
        for made in tables.values():
            fill(made, generator)
        timings = interleave(
            {method: partial(made, token_T.clone()) for method, made in tables.items()},
            options.repeats * (3 if options.quick else 20),
        )
        for method, made in tables.items():
            megabytes = sum(tensor.nbytes for tensor in tensors(made)) / 1e6
            question = f"{TOKENS:,} tokens in {vocabulary:,} x {width}, {name}"
            to = None if method == FLOATS else FLOATS
            yield time_row(question, timings, method, to, note=f"{megabytes:.1f} MB")


def tensors(made: nn.Module) -> list[Tensor]:
    return [*made.parameters(), *made.buffers()]


def fill(made: nn.Module, generator: torch.Generator) -> None:
    """Random values and codes; of a sparse table as many values in every row."""
    for tensor in made.parameters():
        tensor.normal_(generator=generator)
    for codes in made.buffers():
        codes.random_(0, 127, generator=generator)
    if isinstance(made, PrunedRows):
        kept = len(made.value_K)
        made.column_K.copy_(torch.arange(kept) % made.width)
        made.start_W.copy_(torch.arange(made.rows + 1) * kept // made.rows)
    assert not isinstance(made, WordTable) or made.damage() is None
