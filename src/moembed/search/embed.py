"""Embed a file of texts into an index folder, block after block: a killed run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from moembed.data.sources import iter_rows
from moembed.search.index import IndexWriter
from moembed.types import UserError


class TextEncoder(Protocol):
    """What embedding a file asks of a model; ``moembed.embedder.Embedder`` is one."""

    @property
    def dim(self) -> int: ...

    def space_id(self, prompt_name: str | None, dim: int) -> str: ...

    def encode_counted(
        self, texts: list[str], *, prompt_name: str | None, dim: int
    ) -> tuple[np.ndarray, int]: ...


@dataclass(frozen=True, slots=True)
class EmbedSummary:
    """What lies in the finished folder; ``new_rows`` of its rows were embedded by this run."""

    path: Path
    space_id: str
    dim: int
    rows: int
    new_rows: int
    truncated: int

    def __str__(self) -> str:
        if not self.new_rows:
            return f"{self.path} is finished already: {self.rows} rows, nothing to do"
        return (
            f"{self.rows} rows in {self.path} ({self.new_rows} embedded now), "
            f"{self.truncated} texts longer than the model reads were cut"
        )


def embed_file(
    model: TextEncoder,
    source: str | Path,
    out: str | Path,
    *,
    column: str = "text",
    role: Literal["document", "query"] | None = "document",
    prompt_name: str | None = None,
    dim: int | None = None,
    block_rows: int = 4096,
    model_path: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> EmbedSummary:
    """Embed ``column`` of every row of a JSONL, Parquet or CSV source into the index folder ``out``.

    Rows stream through in blocks; each block becomes one part of the folder, with all columns of the input.
    The same call goes on after the last whole part of a started folder and does nothing to a finished one.
    ``role`` and ``model_path`` are noted in the manifest; the prompt comes from ``prompt_name`` alone.
    ``progress`` is told the rows done so far, those of earlier runs included.

    Raises:
        UserError: missing or changed source, a started folder of other settings, a row without a string in
            ``column`` (the empty string is one), no rows at all, a full disk (earlier parts stay).
    """
    if block_rows < 1:
        raise UserError(f"block_rows must be at least 1, got {block_rows}")
    source, dim = Path(source), dim or model.dim
    space_id = model.space_id(prompt_name, dim)
    writer = IndexWriter(
        out,
        space_id=space_id,
        dim=dim,
        role=role,
        prompt_name=prompt_name,
        column=column,
        block_rows=block_rows,
        **_fingerprint(source),
        model_path=model_path,
    )
    earlier_rows = writer.rows
    if not writer.complete:
        for rows in islice(iter_rows(source, block_rows), len(writer.parts), None):
            texts = column_texts(rows, column, source, writer.rows)
            vector_NM, truncated = model.encode_counted(texts, prompt_name=prompt_name, dim=dim)
            writer.append(vector_NM, rows, truncated)
            if progress:
                progress(writer.rows)
        if not writer.rows:
            raise UserError(f"{source} holds no rows to embed")
        writer.finish()
    return EmbedSummary(Path(out), space_id, dim, writer.rows, writer.rows - earlier_rows, writer.truncated)


def _fingerprint(source: Path) -> dict[str, Any]:
    """Name, size and time of change: two states of one source must not be mixed into one index."""
    try:
        files = [file for file in source.rglob("*") if file.is_file()] if source.is_dir() else [source]
        stats = [file.stat() for file in files]
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from None
    return {
        "source": source.name,
        "source_bytes": sum(stat.st_size for stat in stats),
        "source_mtime_ns": max((stat.st_mtime_ns for stat in stats), default=0),
    }


def column_texts(rows: list[dict[str, Any]], column: str, source: Path, first: int) -> list[str]:
    """The column ``column`` of these rows of ``source``; the first of them follows ``first`` others.

    Raises:
        UserError: a row without the column, or with something other than a UTF-8 string in it.
    """
    for number, row in enumerate(rows, start=first + 1):
        if column not in row:
            found = ", ".join(map(repr, row))
            raise UserError(f"{source}, row {number}: no column {column!r}, it has {found}")
        if problem := _problem(row[column]):
            raise UserError(f"{source}, row {number}: column {column!r} {problem}")
    return [row[column] for row in rows]


def _problem(value: Any) -> str | None:
    if not isinstance(value, str):
        return "is null, not a string" if value is None else f"is a {type(value).__name__}, not a string"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    return None
