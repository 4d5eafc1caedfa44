"""An index folder into a vector database, and the proof that it answers there as it does here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic_core import to_jsonable_python

from moembed.encoding import Progress
from moembed.search.index import Index
from moembed.search.stores.store import StoredRow, VectorStore
from moembed.types import UserError

_BATCH = 500  # rows sent at a time
_SAMPLE, _NEAREST = 10, 10  # vectors that are searched for at the end, and how many results of each
_TOLERANCE = 1e-4  # of a cosine: databases compute it in float32 and in another order


@dataclass(frozen=True, slots=True)
class PushSummary:
    """What a push did.

    Attributes:
        rows: of the index.
        written: of them, those that were new or had changed.
        removed: rows of the database that the index does not have, removed by ``prune``.
        extra: such rows that are still there.
        checked: vectors whose nearest rows were found to be the same there as here.
    """

    where: str
    rows: int
    written: int
    removed: int
    extra: int
    checked: int

    def __str__(self) -> str:
        parts = [f"{self.written:,} of {self.rows:,} rows written to {self.where}"]
        if self.written < self.rows:
            parts.append("the others are there already, and the same")
        if self.removed:
            parts.append(f"{self.removed:,} rows that the index does not have were removed")
        if self.extra:
            parts.append(f"{self.extra:,} rows there are not in the index (--prune removes them)")
        if self.checked:
            parts.append(f"the nearest rows of {self.checked} vectors are the same there as here")
        return "; ".join(parts)


def require_one_vector(index: Index) -> None:
    """
    Raises:
        UserError: rows have many vectors each, which the tables and collections here do not hold.
    """
    if index.fde is not None:
        raise UserError(
            f"{index.path} is a multi-vector index, and a push takes one vector of each row: search it here, "
            "or index the texts with a model of one vector"
        )


def open_store(url: str, name: str) -> VectorStore:
    """The collection or table ``name`` of a database.

    Raises:
        UserError: an address of no kind that is known; what the stores raise.
    """
    kind = url.partition("://")[0]
    if kind in ("qdrant", "qdrant+https"):
        from moembed.search.stores.qdrant import QdrantStore

        return QdrantStore(url, name)
    if kind in ("postgresql", "postgres"):
        from moembed.search.stores.postgresql import PostgresStore

        return PostgresStore(url, name)
    if kind in ("lance", "lance+s3", "lance+gs", "lance+az"):
        from moembed.search.stores.lance import LanceStore

        return LanceStore(url, name)
    raise UserError(
        "--to is the address of a database: qdrant://host:6333, qdrant+https://host:6333, "
        "qdrant:///a/folder, postgresql://user@host/database, lance:///a/folder or lance+s3://bucket/folder"
    )


def default_name(index: Path) -> str:
    """The name of a collection for an index folder: its own, in letters that every database takes."""
    plain = "".join(
        letter if letter.isascii() and letter.isalnum() else "_" for letter in index.resolve().name
    )
    return plain.strip("_").lower() or "moembed"


def push_index(
    index: Index, store: VectorStore, *, prune: bool = False, progress: Progress | None = None
) -> PushSummary:
    """Write all rows of an index; the database then finds the same as the index, which is looked at.

    Args:
        prune: remove rows of the database that the index does not have.

    Raises:
        UserError: an index of codes; the database cannot be reached, refuses, or holds vectors of another
            space; it finds other rows than the index does.
    """
    require_one_vector(index)
    if index.codec != "float32":
        raise UserError(
            f"{index.path} holds codes of {index.codec}, and a database needs vectors: push an index of "
            "its documents that was not compressed"
        )
    store.prepare(index.dim, index.space_id)
    seen: set[str] = set()
    written = 0
    rows = stored_rows(index)
    while batch := list(islice(rows, _BATCH)):
        seen.update(row.id for row in batch)
        written += store.upsert(batch)
        if progress:
            progress(len(batch))
    extra = [name for name in store.ids() if name not in seen]
    if prune and extra:
        store.delete(extra)
    left = 0 if prune else len(extra)
    checked = 0 if left else _check(index, store)
    store.commit()
    return PushSummary(store.where, len(seen), written, len(extra) - left, left, checked)


def stored_rows(index: Index) -> Iterator[StoredRow]:
    """The rows of an index in its order; a column that holds their ids is no metadata."""
    column: str = index.manifest.get("column") or ""
    start = 0
    for vector_NM in index.vectors():
        for first in range(0, len(vector_NM), _BATCH):
            some_NM = np.asarray(vector_NM[first : first + _BATCH])
            numbers = range(start + first, start + first + len(some_NM))
            ids, rows = index.ids(numbers), index.rows(numbers)
            for row_id, row, vector_M in zip(ids, rows, some_NM, strict=True):
                left_out = {column, *(name for name in ("_id", "id") if str(row.get(name)) == row_id)}
                metadata = {name: value for name, value in row.items() if name not in left_out}
                yield StoredRow(row_id, str(row.get(column) or ""), as_json(metadata), vector_M)
        start += len(vector_NM)


def as_json(metadata: dict[str, object]) -> dict[str, object]:
    """Values of JSON: dates as text, bytes as base64; NaN and infinity, which JSON lacks, as null."""
    found: dict[str, object] = to_jsonable_python(metadata, bytes_mode="base64", inf_nan_mode="null")
    return found


def _check(index: Index, store: VectorStore) -> int:
    """Search for some of the rows' own vectors in both, and compare the cosines, since ids may tie."""
    if not len(index):
        return 0
    sample_QM = np.concatenate([vector_NM[:_SAMPLE] for vector_NM in islice(index.vectors(), _SAMPLE)])
    sample_QM = np.array(sample_QM[:: max(1, len(sample_QM) // _SAMPLE)][:_SAMPLE])
    k = min(_NEAREST, len(index))
    here_QK = index.search(sample_QM, k, exact=True).score
    for vector_M, here_K in zip(sample_QM, here_QK, strict=True):
        there = store.nearest(vector_M, k)
        there_K = np.array([cosine for _, cosine in there])
        if len(there_K) != k or not np.allclose(there_K, here_K, atol=_TOLERANCE):
            raise UserError(
                f"{store.where} finds other rows than {index.path} does: "
                f"{np.round(there_K, 4).tolist()} and not {np.round(here_K, 4).tolist()}"
            )
    return len(sample_QM)
