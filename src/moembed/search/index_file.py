"""A file of documents into an index: new rows are embedded, changed ones replaced, the others stay."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moembed.data.sources import iter_rows
from moembed.encoding import FULL, TextEncoder, TokenEncoder, TokenVectors, Vectors, View
from moembed.files import locked
from moembed.search.ann_build import refresh, require_engine_of
from moembed.search.embed import EmbedConfig, column_texts, require_dim
from moembed.search.fde import FdeConfig
from moembed.search.index_ids import BY_TEXT, RowIds, choose_id_column
from moembed.search.index_manifest import read_manifest
from moembed.search.index_repair import Embed
from moembed.search.index_update import IndexUpdate
from moembed.types import UserError


@dataclass(frozen=True, slots=True)
class IndexSummary:
    """What an update of an index did.

    Attributes:
        rows: rows of the index from now on.
        new_rows: texts that were embedded now.
        added: rows of the source whose id was not there.
        changed: those that took the place of another row of their id.
        unchanged: those that were there already.
        deleted: rows that the source does not hold and that were deleted.
        others: rows of the index that the source does not hold and that stay.
        truncated: texts of this update that were longer than the model reads.
        engine: what searches the index: ``exact``, or the approximate engine.
        recall: of the approximate engine, see `moembed.search.ann.AnnPart`; None: the search is exact.
        about_engine: the same in a sentence.
        multivector: of an index of token vectors, how they are encoded.
    """

    path: Path
    space_id: str
    dim: int
    rows: int
    new_rows: int
    truncated: int
    added: int
    changed: int
    unchanged: int
    deleted: int
    others: int
    engine: str = field(default="exact", kw_only=True)
    recall: float | None = field(default=None, kw_only=True)
    about_engine: str = field(default="", kw_only=True)
    multivector: FdeConfig | None = field(default=None, kw_only=True)

    def __str__(self) -> str:
        rows = f"{self.rows} row{'s' * (self.rows != 1)}"
        if not (self.added or self.changed or self.deleted or self.new_rows):
            return f"{self.path} is up to date: {rows}, nothing to do" + self._about_others()
        did = [f"{self.added} added", f"{self.changed} changed", f"{self.unchanged} as they were"]
        did += [f"{self.deleted} deleted"] if self.deleted else []
        return (
            f"{rows} in {self.path}: {', '.join(did)} ({self.new_rows} embedded now), "
            f"{self.truncated} texts longer than the model reads were cut{self._about_others()}"
            f"{self._encoding()}"
        )

    def _encoding(self) -> str:
        if self.multivector is None:
            return ""
        values = ", ".join(f"{name} {value}" for name, value in self.multivector.as_json().items())
        return f"; every row has the vectors of its tokens, encoded with {values}"

    def _about_others(self) -> str:
        stay = f"; {self.others} rows that the source does not hold stay (--delete-missing deletes them)"
        engine = f"; {self.about_engine}" if self.about_engine else ""
        return (stay if self.others else "") + engine


def index_file(
    model: TextEncoder,
    source: str | Path,
    out: str | Path,
    config: EmbedConfig | None = None,
    *,
    id_column: str | None = None,
    delete_missing: bool = False,
    engine: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> IndexSummary:
    """Make the index ``out`` of a JSONL, Parquet or CSV source, or bring it up to date with it.

    Rows are told apart by id. A row whose id the index lacks is added; one that differs from the row of its
    id takes its place, and is embedded only if its text differs. All becomes visible at once, at the end; the
    same call goes on after the blocks that a killed one embedded. ``progress`` is told the rows of the source
    that are done.

    Args:
        id_column: the column of the ids, or ``none``: they are made of the texts. Default: that of the index,
            of a new one ``_id`` or ``id`` if the first row has it, else ``none``.
        delete_missing: delete the rows of the index that the source does not hold.
        engine: ``exact``, or an approximate engine that is built beside the rows and searched from then on,
            see `moembed.search.ann`. Default: that of the index, of a new one ``exact``.

    Raises:
        UserError: missing source, no rows, a row without a string in the column or without an id, an id that
            stands there twice, an index of other settings, a ``dim`` that the model does not have, a full
            disk, another process that writes to ``out``. The index is as it was.
    """
    source, out, config = Path(source), Path(out), config or EmbedConfig()
    late = _encoding(model, out, config, engine)
    dim = require_dim(model, config) if late is None else late.dim
    if not source.exists():
        raise UserError(f"cannot read {source}: there is no such file or folder")
    view = View(dim=dim) if late is None else FULL
    fields: dict[str, Any] = {
        "space_id": model.space(role=config.role, prompt=config.prompt, view=view),
        "dim": dim,
        "role": config.role,
        "prompt_name": config.prompt_name,
        "column": config.column,
        "block_rows": config.block_rows,
        "model_path": config.model_path,
        **({} if late is None else {"multivector": late.as_json()}),
    }
    with locked(out):
        require_engine_of(out, engine)
        update = IndexUpdate(out, fields, source.name, _embedding(model, config, view, late))
        ids: RowIds | None = None
        done = 0
        for rows in iter_rows(source, config.block_rows):
            texts = column_texts(rows, config.column, source, done)
            if ids is None:
                ids = RowIds(source, _id_column(update, rows[0], id_column))
            update.add(rows, texts, ids.take(rows, texts))
            done += len(rows)
            if progress:
                progress(done)
        if ids is None:
            raise UserError(f"{source} holds no rows to embed")
        missing = [known for known in update.ids() if known not in ids]
        if delete_missing:
            update.delete(missing)
        total = update.commit()
        ann = refresh(out, engine)
    counts: dict[str, Any] = dict(update.counts)
    others = 0 if delete_missing else len(missing)
    counts["new_rows"] = counts.pop("embedded")
    summary = IndexSummary(out, fields["space_id"], dim, total, others=others, multivector=late, **counts)
    if ann is None:
        return summary
    return replace(summary, engine=ann.engine, recall=ann.recall, about_engine=str(ann))


def _embedding(model: TextEncoder, config: EmbedConfig, view: View, late: FdeConfig | None) -> Embed:
    """Texts to vectors, or to the vectors of their tokens."""

    def embed(texts: list[str]) -> Vectors | TokenVectors:
        if late is None:
            return model.vectors(texts, role=config.role, prompt=config.prompt, view=view)
        assert isinstance(model, TokenEncoder)
        return model.encode_tokens(texts, role=config.role, prompt=config.prompt)

    return embed


def _encoding(model: TextEncoder, out: Path, config: EmbedConfig, engine: str | None) -> FdeConfig | None:
    """How token vectors are encoded: as asked for, else as in the index that is there, else by default.

    None: the model makes one vector of a text.
    """
    if not getattr(model, "per_token", False):
        if config.multivector is not None:
            raise UserError(
                "a multi-vector index needs a model that makes a vector of every token: train one with "
                "`pooling: tokens`"
            )
        return None
    if config.dim is not None:
        raise UserError("dim cuts vectors of texts: leave it out for a model that makes one of every token")
    if engine not in (None, "exact"):
        raise UserError(
            f"the engine {engine} takes one vector of a row, and this model makes one of every token: "
            "leave it out"
        )
    there = (read_manifest(out) or {}).get("multivector")
    if config.multivector is not None:
        return config.multivector
    return FdeConfig.from_json(there) if there else FdeConfig.parse("", model.dim)


def delete_rows(out: str | Path, ids: list[str]) -> tuple[int, int]:
    """Delete rows by id: how many, and how many are left.

    Raises:
        UserError: no index, an id that it does not hold (nothing is deleted), a full disk, another process
            that writes there.
    """
    with locked(Path(out)):
        require_engine_of(Path(out), None)
        update = IndexUpdate(Path(out))
        update.delete(ids)
        left = update.commit()
        refresh(Path(out), None)
        return update.counts["deleted"], left


def _id_column(update: IndexUpdate, first: dict[str, object], wanted: str | None) -> str | None:
    """The column of ids: that of the index, or of its first row."""
    there = update.id_column or BY_TEXT
    if update.is_new or (update.is_unfinished and wanted not in (None, there)):
        update.set_id_column(choose_id_column(first, wanted))
        return update.id_column
    if wanted not in (None, there):
        raise UserError(
            f"the ids of {update.path} are those of column {there!r}, not of {wanted!r}: leave --id out, or "
            "make another index"
        )
    would = choose_id_column(first, None)
    if update.id_column is None and would is not None and wanted is None:
        warnings.warn(
            f"the ids of {update.path} are made of the texts, so the column {would!r} of this file is a "
            "column like others",
            stacklevel=3,
        )
    return update.id_column
