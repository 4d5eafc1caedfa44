"""The texts of one role by row number, and each distinct one once: what filtering and mining embed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import numpy as np

from moembed.data.sources import Source
from moembed.data.text_key import normalize, text_key
from moembed.search.vectors import text_keys

Role = Literal["query", "document"]

_BLOCK = 8192  # texts that are Python objects at one time
_ENDING = 8  # characters of ``endings``


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
    """The distinct texts of a column in the order they first appear; texts equal by ``text_key`` are one.

    Attributes:
        row_U: the row where each stands first; the spelling there is the one that is embedded.
        key_U: its ``text_keys``.
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
    # hashed block by block: the texts may not fit into memory
    blocks = [_keys(column.take(some)) for some in _split(row_N)]
    equal_N, key_N = (np.concatenate([text_keys([]), *keys]) for keys in zip(*blocks, strict=True))
    _, first_U, text_N = np.unique(equal_N, return_index=True, return_inverse=True)
    order_U = np.argsort(first_U)
    number_U = np.empty_like(order_U)
    number_U[order_U] = np.arange(len(order_U))
    return Distinct(column, row_N[first_U[order_U]], key_N[first_U[order_U]], number_U[text_N])


def _keys(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the texts up to what makes two texts equal, and of their exact spelling."""
    exact_N = text_keys(texts)
    return np.frombuffer(b"".join(map(text_key, texts)), dtype=exact_N.dtype), exact_N


def endings(texts: Distinct) -> np.ndarray:
    """A number for every distinct text, the same where the last characters are: int64.

    A text and the same text behind a title have the same number; the reverse is for ``same_but_title``.
    """
    parts = [_ending_numbers(texts.take(some)) for some in _split(np.arange(len(texts)))]
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def _ending_numbers(texts: list[str]) -> np.ndarray:
    return np.array([crc32(normalize(text)[-_ENDING:].encode("utf-8", "surrogatepass")) for text in texts])


def same_but_title(one: str, other: str) -> bool:
    """Whether two texts are equal, or would be if one of them had no title, or other words, in front."""
    short, long = sorted((normalize(one), normalize(other)), key=len)
    return bool(short) and (short == long or long.endswith(f" {short}"))


def _split(row_N: np.ndarray) -> list[np.ndarray]:
    return [row_N[start : start + _BLOCK] for start in range(0, len(row_N), _BLOCK)]
