"""A dense model folder -> one with experts: what ``moembed upcycle`` does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from moembed.data.sources import iter_rows
from moembed.embedder import Embedder
from moembed.encoding import role_prompt
from moembed.folder.parts import Parts
from moembed.packing import pack
from moembed.search.embed import column_texts
from moembed.types import Batch, UserError
from moembed.weights.upcycle import UpcycleConfig, upcycle

_BLOCK = 256


def upcycled(
    parts: Parts, options: UpcycleConfig, texts: Path | None = None, column: str = "text"
) -> Embedder:
    """The model with experts.

    Args:
        texts: JSONL, Parquet or CSV, whose first ``options.sample`` texts upcycling by clusters looks at, as
            documents.

    Raises:
        UserError: what `moembed.weights.upcycle.upcycle` refuses; texts where nothing looks at them.
    """
    if texts is not None and options.init != "cluster":
        raise UserError(f"--texts are for --init cluster, and --init {options.init} looks at none")
    sample = None if texts is None else _sample(parts, texts, column, options.sample)
    spec, state = upcycle(parts.spec, parts.state, options, sample)
    return Embedder(replace(parts, spec=spec, state=state))


def document_rows(parts: Parts, texts: list[str]) -> list[list[int]]:
    """Token ids of texts with the model's prompt of documents, cut where it cuts them."""
    tokenizer = parts.tokenizer
    prompt = tokenizer.prompt(role_prompt("document", tokenizer.prompts, tokenizer.default_prompt))
    return tokenizer.rows(texts, prompt=prompt)[0]


def _sample(parts: Parts, source: Path, column: str, count: int) -> Batch:
    return pack(document_rows(parts, list(islice(texts_of(source, column), count))))


def texts_of(source: Path, column: str) -> Iterator[str]:
    done = 0
    for rows in iter_rows(source, _BLOCK):
        yield from column_texts(rows, column, source, done)
        done += len(rows)
