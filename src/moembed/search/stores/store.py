"""What every vector database is asked to do, and the rows that go there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from moembed.search.where import Where
from moembed.search.where_mask import require_columns
from moembed.types import UserError


@dataclass(frozen=True)
class StoredRow:
    """A document as a database keeps it.

    Attributes:
        metadata: its other columns, as plain values of JSON.
        vector_M: float32, of length 1.
    """

    id: str
    text: str
    metadata: Mapping[str, Any]
    vector_M: np.ndarray

    @cached_property
    def digest(self) -> str:
        """A hash of everything but the id: rows of equal digests are the same."""
        facts = json.dumps([self.text, self.metadata], sort_keys=True, ensure_ascii=False)
        known = hashlib.sha256(facts.encode("utf-8", "surrogatepass"))
        known.update(self.vector_M.astype("<f4").tobytes())
        return known.hexdigest()[:32]


def require_space(where: str, found: str | None, space: str) -> None:
    """Raise UserError unless a collection was made by us, and for vectors of this space."""
    if found is None:
        raise UserError(f"{where} was not made by `moembed index push`: choose another --name")
    if found != space:
        raise UserError(
            f"{where} holds vectors of space {found} and the index those of {space}: choose another --name"
        )


def require_condition(where: Where | None, kinds: Mapping[str, str] | None) -> Mapping[str, str]:
    """Raise UserError where the columns, whose kinds are given back, cannot answer the condition."""
    known = dict(kinds or {})
    if where is not None:
        require_columns(where, known)
    return known


class VectorStore(Protocol):
    """A collection of a vector database, for the vectors of one space.

    Everything raises UserError where the database cannot be reached or refuses.
    """

    where: str
    """Database and collection, as people name them; never a password."""

    def prepare(self, dim: int, space: str) -> None:
        """Make the collection, or see that an existing one holds vectors of this size and space."""

    def upsert(self, rows: Sequence[StoredRow]) -> int:
        """Write rows; those that are there already, and the same, are left alone. How many were written."""

    def ids(self) -> Iterator[str]:
        """The ids of all rows."""

    def delete(self, ids: Sequence[str]) -> None:
        """Remove these rows."""

    def nearest(
        self, vector_M: np.ndarray, k: int, where: Where | None = None, kinds: Mapping[str, str] | None = None
    ) -> list[tuple[str, float]]:
        """Ids and cosines of the ``k`` nearest rows, best first, found without an approximate index.

        Args:
            where: only rows that meet it.
            kinds: what the columns of the index hold, ``Index.columns``.
        """

    def commit(self) -> None:
        """Let others see what was written."""

    def close(self) -> None:
        """What was not committed is dropped, where the database can do that."""
