"""A table of LanceDB, in a folder or in object storage.

Its columns are ``id``, ``text``, ``metadata`` (JSON), ``digest`` and ``vector``; the space of the vectors
stands in the metadata of its schema. No approximate index is made; docs/search.md has the line for one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from moembed.search.stores.store import StoredRow, require_condition, require_space
from moembed.search.where import Where
from moembed.search.where_sql import Lance, as_sql
from moembed.types import UserError

_WRITTEN = 5000  # rows of one version of the table: every version writes files of its own
_PAGE = 500  # ids named in one condition
_SPACE = b"moembed_space"


class LanceStore:
    """A `moembed.search.stores.store.VectorStore`.

    Args:
        url: ``lance:///a/folder``; ``lance+s3://bucket/folder``, or gs and az, whose keys LanceDB reads from
            the environment (AWS_ACCESS_KEY_ID, …).
        name: of the table.
    """

    def __init__(self, url: str, name: str) -> None:
        try:
            import lancedb
        except ImportError:
            raise UserError("LanceDB needs its package: pip install 'moembed[lance]'") from None
        self.name, self.where = name, f"{url}, table {name}"
        kind, _, place = url.partition("://")
        if not place.strip("/") or (kind == "lance" and not place.startswith("/")):
            raise UserError(
                f"{url} is no address of LanceDB: give lance:///a/folder or lance+s3://bucket/folder"
            )
        with self._one_sentence():
            scheme = kind.removeprefix("lance").removeprefix("+")
            self._database: Any = lancedb.connect(f"{scheme}://{place}" if scheme else place)
        self._table: Any = None
        self._digests: dict[str, str] = {}  # of the rows that are there, or wait
        # rows that wait to be written: a changed one is looked for in the whole table, a new one is not
        self._new: list[StoredRow] = []
        self._changed: list[StoredRow] = []

    def prepare(self, dim: int, space: str) -> None:
        """See `VectorStore`."""
        with self._one_sentence():
            self._table = self._opened() or self._database.create_table(self.name, schema=_schema(dim, space))
            found = (self._table.schema.metadata or {}).get(_SPACE)
        require_space(self.where, None if found is None else found.decode(), space)
        with self._one_sentence():
            for batch in self._scan(["id", "digest"]):
                self._digests |= dict(zip(batch["id"].to_pylist(), batch["digest"].to_pylist(), strict=True))

    def upsert(self, rows: Sequence[StoredRow]) -> int:
        """See `VectorStore`."""
        other = [row for row in rows if self._digests.get(row.id) != row.digest]
        for row in other:
            (self._changed if row.id in self._digests else self._new).append(row)
            self._digests[row.id] = row.digest
        if len(self._new) + len(self._changed) >= _WRITTEN:
            self._write()
        return len(other)

    def ids(self) -> Iterator[str]:
        """See `VectorStore`."""
        self._write()
        with self._one_sentence():
            for batch in self._scan(["id"]):
                yield from batch["id"].to_pylist()

    def delete(self, ids: Sequence[str]) -> None:
        """See `VectorStore`."""
        self._write()
        with self._one_sentence():
            for start in range(0, len(ids), _PAGE):
                some = ", ".join("'" + name.replace("'", "''") + "'" for name in ids[start : start + _PAGE])
                self._there().delete(f"id IN ({some})")
        for name in ids:
            self._digests.pop(name, None)

    def nearest(
        self, vector_M: np.ndarray, k: int, where: Where | None = None, kinds: Mapping[str, str] | None = None
    ) -> list[tuple[str, float]]:
        """See `VectorStore`."""
        known = require_condition(where, kinds)
        self._write()
        # of a vector of zeros, of a text without a token, LanceDB finds no cosine; the product is 0
        (unit_M,) = _unit(vector_M[None])
        with self._one_sentence():
            query = self._there().search(unit_M, vector_column_name="vector").distance_type("dot")
            query = query.bypass_vector_index().select(["id", "_distance"]).limit(k)
            if where is not None:
                query = query.where(as_sql(where, known, Lance())[0], prefilter=True)
            found = query.to_list()
        return [(row["id"], 1 - float(row["_distance"])) for row in found]

    def commit(self) -> None:
        """Rows are seen as they are written: a table has versions, and each is whole."""
        self._write()
        with self._one_sentence():
            self._there().optimize()  # small files become few

    def close(self) -> None:
        """Rows that wait are dropped."""
        self._new, self._changed = [], []

    def _write(self) -> None:
        with self._one_sentence():
            if self._new:
                self._there().add(_as_table(self._new))
            if self._changed:
                merge = self._there().merge_insert("id").when_matched_update_all()
                merge.when_not_matched_insert_all().execute(_as_table(self._changed))
        self._new, self._changed = [], []

    def _scan(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        yield from self._there().search().select(columns).to_batches()

    def _there(self) -> Any:
        if self._table is None:
            with self._one_sentence():
                self._table = self._opened()
        if self._table is None:
            raise UserError(f"{self.where} is not there: moembed index push makes it")
        return self._table

    def _opened(self) -> Any | None:
        try:
            return self._database.open_table(self.name)
        except ValueError as error:
            if "not found" in str(error):
                return None
            raise

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
            raise UserError(f"LanceDB, {self.where}: {' '.join(str(error).split())[:300]}") from None


def _schema(dim: int, space: str) -> pa.Schema:
    fields = [("id", pa.string()), ("text", pa.string()), ("metadata", pa.json_()), ("digest", pa.string())]
    return pa.schema([*fields, ("vector", pa.list_(pa.float32(), dim))], metadata={_SPACE: space.encode()})


def _as_table(rows: Sequence[StoredRow]) -> pa.Table:
    facts = pa.array([json.dumps(row.metadata, ensure_ascii=False) for row in rows])
    vector_NM = _unit(np.stack([row.vector_M for row in rows]))
    return pa.table(
        {
            "id": [row.id for row in rows],
            "text": [row.text for row in rows],
            "metadata": pa.ExtensionArray.from_storage(pa.json_(), facts),
            "digest": [row.digest for row in rows],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vector_NM.reshape(-1)), vector_NM.shape[1]),
        }
    )


def _unit(vector_NM: np.ndarray) -> np.ndarray:
    norm_N1 = np.linalg.norm(vector_NM, axis=1, keepdims=True)
    found: np.ndarray = (vector_NM / np.where(norm_N1 > 0, norm_N1, 1)).astype(np.float32)
    return found
