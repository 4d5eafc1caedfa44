"""The texts of one role by row number, and each distinct one once: what filtering and mining embed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moembed.data.sources import Source
from moembed.search.vectors import text_keys

Role = Literal["query", "document"]

_BLOCK = 8192  # texts that are Python objects at one time


@dataclass(frozen=True, slots=True)
class Column:
    """The queries, or the documents, of one source after the other."""

    role: Role
    sources: Sequence[Source]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def take(self, rows: np.ndarray) -> list[str]:
        """The texts of ``rows``, in that order."""
        found = np.empty(len(rows), dtype=object)
        first = 0
        for source in self.sources:
            mine = (rows >= first) & (rows < first + len(source))
            found[mine] = [getattr(pair, self.role) for pair in source.pairs(rows[mine] - first)]
            first += len(source)
        return found.tolist()

    def where(self, row: int) -> str:
        """What to call the text of a row: ``the document of squad, row 5``."""
        for source in self.sources:
            if row < len(source):
                return f"the {self.role} of {source.name}, row {row + 1}"
            row -= len(source)
        raise IndexError(row)


@dataclass(frozen=True, slots=True)
class Distinct:
    """The distinct texts of a column in the order they first appear.

    Attributes:
        row_U: the row where each stands first.
        key_U: their ``text_keys``.
        text_N: for every row looked at, the number of its text.
    """

    column: Column
    row_U: np.ndarray
    key_U: np.ndarray
    text_N: np.ndarray

    def __len__(self) -> int:
        return len(self.row_U)

    def take(self, texts: np.ndarray) -> list[str]:
        return self.column.take(self.row_U[texts])


def distinct(column: Column, rows: np.ndarray | None = None) -> Distinct:
    """The distinct texts among ``rows``, or of the whole column."""
    row_N = np.arange(len(column)) if rows is None else rows
    key_N = np.concatenate(
        [text_keys([]), *(text_keys(column.take(some)) for some in _split(row_N))]
    )  # hashed block by block: the texts may not fit into memory
    key_U, first_U, text_N = np.unique(key_N, return_index=True, return_inverse=True)
    order_U = np.argsort(first_U)
    number_U = np.empty_like(order_U)
    number_U[order_U] = np.arange(len(order_U))
    return Distinct(column, row_N[first_U[order_U]], key_U[order_U], number_U[text_N])


def _split(row_N: np.ndarray) -> list[np.ndarray]:
    return [row_N[start : start + _BLOCK] for start in range(0, len(row_N), _BLOCK)]
