"""The rows that meet a condition, kept while an index is open.

Filters come again: a language, a customer, a kind of document. So the rows that a condition leaves, and their
vectors where they are few, are kept for the next search, which need not ask every row again. An open index is
one version, and what is kept goes with it: what a writer commits is never looked for among older rows.

The memory is bounded: ``KEPT`` conditions and ``KEPT_BYTES`` at most, of which one condition may take a
quarter. What was not used for longest goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

KEPT, KEPT_BYTES = 64, 64 * 2**20
_SHARE = 4  # one condition may take this part of the bytes


@dataclass(frozen=True, slots=True)
class Matches:
    """The rows that meet a condition.

    Attributes:
        row_K: their numbers, ascending.
        vector_KM: their vectors, and ``norm_K`` the lengths of these; None: too many to be kept.
    """

    row_K: np.ndarray
    vector_KM: np.ndarray | None = None
    norm_K: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.row_K)

    def hold(self, row_C: np.ndarray) -> np.ndarray:
        """Which of some rows are among these: bool ``(C,)``."""
        if not len(self.row_K):
            return np.zeros(len(row_C), bool)
        place_C = np.searchsorted(self.row_K, row_C)
        return np.asarray(self.row_K.take(place_C, mode="clip") == row_C)

    def flags(self, rows: int) -> np.ndarray:
        """The same as bool ``(rows,)``."""
        flag_N = np.zeros(rows, bool)
        flag_N[self.row_K] = True
        return flag_N

    @property
    def bytes(self) -> int:
        arrays = (self.row_K, self.vector_KM, self.norm_K)
        return sum(array.nbytes for array in arrays if array is not None)


@dataclass(slots=True)
class KeptMatches:
    """What is kept of the conditions that were asked last; safe to use from several threads at once."""

    _found: OrderedDict[Hashable, Matches] = field(default_factory=OrderedDict)
    _asked: set[Hashable] = field(default_factory=set)
    _bytes: int = 0
    _lock: Lock = field(default_factory=Lock)

    def get(self, key: Hashable) -> Matches | None:
        with self._lock:
            found = self._found.get(key)
            if found is not None:
                self._found.move_to_end(key)
            return found

    def put(self, key: Hashable, matches: Matches) -> None:
        """Keep it, in the place of what was kept of this key, unless it is too large."""
        if matches.bytes > KEPT_BYTES // _SHARE:
            return
        with self._lock:
            before = self._found.pop(key, None)
            self._bytes += matches.bytes - (0 if before is None else before.bytes)
            self._found[key] = matches
            while self._bytes > KEPT_BYTES or len(self._found) > KEPT:
                self._bytes -= self._found.popitem(last=False)[1].bytes

    def again(self, key: Hashable) -> bool:
        """Whether this was asked before: what is asked once need not be kept."""
        with self._lock:
            if key in self._asked:
                return True
            if len(self._asked) >= KEPT:
                self._asked.clear()
            self._asked.add(key)
            return False

    @staticmethod
    def room(rows: int, width: int) -> bool:
        """Whether so many rows may be kept with vectors of so many coordinates."""
        return rows * (4 * width + 16) <= KEPT_BYTES // _SHARE
