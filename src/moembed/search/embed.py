"""Embed a file of texts in its order, block after block: a killed run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moembed.data.readers import string_problem
from moembed.data.sources import iter_rows
from moembed.encoding import TextEncoder, View
from moembed.files import locked
from moembed.search.fde import FdeConfig
from moembed.search.index_writer import IndexWriter
from moembed.types import UserError

_FILES = {".npy", ".npz", ".parquet", ".jsonl", ".csv"}  # what is no name for a folder


@dataclass(frozen=True, slots=True)
class EmbedConfig:
    """What is embedded, and as what.

    Attributes:
        column: the column that holds the text.
        role: whose texts they are, for the manifest.
        prompt: this text is put before each of them.
        prompt_name: the name the model has for it, for the manifest.
        dim: coordinates that are kept; None keeps all.
        block_rows: rows of a part: what a killed run loses at most.
        model_path: where the model lies, for the manifest.
        multivector: for an index of a model that makes a vector of every token: how they are encoded.
    """

    column: str = "text"
    role: Literal["document", "query"] | None = "document"
    prompt: str = ""
    prompt_name: str | None = None
    dim: int | None = None
    block_rows: int = 4096
    model_path: str | None = None
    multivector: FdeConfig | None = None


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
    config: EmbedConfig = EmbedConfig(),
    progress: Callable[[int], None] | None = None,
) -> EmbedSummary:
    """Embed a column of every row of a JSONL, Parquet or CSV source into the index folder ``out``.

    Rows stream through in blocks; each block becomes one part of the folder, with all columns of the input.
    The same call goes on after the whole parts of a started folder, replaces the damaged ones of a finished
    folder and does nothing to a sound one. ``progress`` is told the rows done so far, those of earlier runs
    included.

    Raises:
        UserError: missing or changed source, an ``out`` that is named like a file, a started folder of other
            settings, a row without a string in the column (the empty string is one), no rows at all, a
            ``dim`` that the model does not have, a full disk (earlier parts stay), another process that
            writes to ``out``.
    """
    source, out = Path(source), Path(out)
    if out.suffix in _FILES and not out.is_dir():
        raise UserError(
            f"{out} is a name for a file, and vectors are a folder, with part-00000.npy and more: "
            f"name it {out.with_suffix('')}"
        )
    dim = require_dim(model, config)
    stamp = _fingerprint(source)
    space_id = model.space(role=config.role, prompt=config.prompt, view=View(dim=dim))
    with locked(out):
        writer = IndexWriter(
            out,
            space_id=space_id,
            dim=dim,
            role=config.role,
            prompt_name=config.prompt_name,
            column=config.column,
            block_rows=config.block_rows,
            **stamp,
            model_path=config.model_path,
        )
        earlier_rows = writer.rows
        if not writer.complete:
            _embed_missing(model, source, writer, config, dim, progress)
    return EmbedSummary(out, space_id, dim, writer.rows, writer.rows - earlier_rows, writer.truncated)


def require_dim(model: TextEncoder, config: EmbedConfig) -> int:
    """The coordinates that are kept.

    Raises:
        UserError: the model has no such vectors, or blocks hold no rows.
    """
    if config.block_rows < 1:
        raise UserError(f"block_rows must be at least 1, got {config.block_rows}")
    dim = model.dim if config.dim is None else config.dim
    if not 1 <= dim <= model.dim:
        raise UserError(f"dim {dim} is not possible: vectors of this model have 1 to {model.dim} coordinates")
    return dim


def _embed_missing(
    model: TextEncoder,
    source: Path,
    writer: IndexWriter,
    config: EmbedConfig,
    dim: int,
    progress: Callable[[int], None] | None,
) -> None:
    """Write the parts that are not there yet, and finish the folder."""
    for part, rows in enumerate(iter_rows(source, config.block_rows)):
        if writer.has(part):
            continue
        texts = column_texts(rows, config.column, source, part * config.block_rows)
        found = model.vectors(texts, role=config.role, prompt=config.prompt, view=View(dim=dim))
        writer.append(found.array, rows, found.truncated)
        if progress:
            progress(writer.rows)
    if not writer.rows:
        raise UserError(f"{source} holds no rows to embed")
    writer.finish()


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
        if problem := string_problem(row[column]):
            raise UserError(f"{source}, row {number}: column {column!r} {problem}")
    return [row[column] for row in rows]
