"""Where the rows of an index lie: rows that are not deleted are numbered through, part after part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np

from moembed.search.index_manifest import Part

Which = slice | np.ndarray


class Places:
    """The rows of some parts that are not deleted.

    Attributes:
        begin_P: the number of the first row of every part, and after the last of them that of all rows.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self.begin_P = np.cumsum([0, *(part.live for part in parts)])

    def __len__(self) -> int:
        return int(self.begin_P[-1])

    @cached_property
    def live(self) -> list[np.ndarray]:
        """Numbers in each part of its rows that are not deleted."""
        return [part.live_rows() for part in self._parts]

    def of(self, index_K: np.ndarray) -> Iterator[tuple[int, Which, np.ndarray]]:
        """For each part that is needed: its place, which of ``index_K`` it holds, and their rows there.

        Raises:
            IndexError: a number that is not a row.
        """
        # numbers that ascend, as those of the rows that meet a condition do, are neither sorted nor scattered
        ascend = bool((index_K[1:] >= index_K[:-1]).all())
        order_K = None if ascend else np.argsort(index_K, kind="stable")
        sorted_K = index_K if order_K is None else index_K[order_K]
        if len(sorted_K) and not 0 <= sorted_K[0] <= sorted_K[-1] < len(self):
            raise IndexError(f"row numbers must lie in 0..{len(self) - 1}")
        cut_P = np.searchsorted(sorted_K, self.begin_P)
        for part in np.flatnonzero(cut_P[1:] > cut_P[:-1]).tolist():
            some = slice(int(cut_P[part]), int(cut_P[part + 1]))
            row_K = sorted_K[some] - self.begin_P[part]
            if self._parts[part].deleted_N is not None:
                row_K = self.live[part][row_K]
            yield part, some if order_K is None else order_K[some], row_K


class Lengths:
    """The lengths of the vectors of all rows, a part computed when it is first needed: 8 bytes a row.

    Safe to use from several threads at once: they may compute the same twice.

    Args:
        compute: those of the rows of a part that are not deleted, by its place.
    """

    def __init__(self, places: Places, compute: Callable[[int], np.ndarray]) -> None:
        self._begin_P, self._compute = places.begin_P, compute
        self._norm_N, self._known = np.zeros(len(places)), np.zeros(len(places.begin_P) - 1, bool)

    def of(self, part: int) -> np.ndarray:
        """Those of a part."""
        norm_N = self._norm_N[self._begin_P[part] : self._begin_P[part + 1]]
        if not self._known[part]:
            norm_N[:] = self._compute(part)
            self._known[part] = True  # last: another thread may ask at any moment
        return norm_N

    def at(self, row_K: np.ndarray) -> np.ndarray:
        """Those of some rows, whose numbers ascend."""
        if not self._known.all():
            cut_P = np.searchsorted(row_K, self._begin_P)
            for part in np.flatnonzero((cut_P[1:] > cut_P[:-1]) & ~self._known).tolist():
                self.of(part)
        return self._norm_N[row_K]
