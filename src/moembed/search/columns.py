"""Columns of an index, held in memory once they were read, and the rows that meet a condition.

A column comes in pieces, one of each part. Where all pieces have one type they are joined, so that a
condition is one pass over an array and not one call for every part. Texts of more than 2 GiB stay in pieces:
no array of Arrow's plain string type holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

# a column of a part by name; None: all of its values are missing
Read = Callable[[str], "pa.Array | None"]
# columns by name, and how many rows they have -> which rows are meant
Meets = Callable[[Read, int], np.ndarray]


class Columns:
    """The columns of ``sum(sizes)`` rows.

    Args:
        sizes: rows of every piece.
        read: a piece of a column, by its place and the name of the column.
    """

    def __init__(self, sizes: Sequence[int], read: Callable[[int, str], pa.Array | None]) -> None:
        self._sizes, self._read = list(sizes), read
        self._whole: dict[str, pa.Array | None] = {}  # None: in pieces
        self._pieces: dict[str, list[pa.Array | None]] = {}  # of those

    def __len__(self) -> int:
        return sum(self._sizes)

    def meets(self, names: Iterable[str], test: Meets) -> np.ndarray:
        """Which rows meet a test that reads the columns ``names``: bool ``(N,)``."""
        if None not in [self._column(name) for name in names]:
            return test(self._column, len(self))
        found = [test(partial(self._piece, place=place), size) for place, size in enumerate(self._sizes)]
        return np.concatenate([np.zeros(0, bool), *found])

    def meets_at(self, names: Iterable[str], test: Meets, row_K: np.ndarray) -> np.ndarray:
        """``meets(names, test)[row_K]``, without looking at the other rows where that can be."""
        names = list(names)
        if None in [self._column(name) for name in names]:
            return self.meets(names, test)[row_K]
        taken = {name: self._column(name).take(pa.array(row_K)) for name in names}  # type: ignore[union-attr]
        return test(taken.__getitem__, len(row_K))

    def pieces(self, name: str) -> list[pa.Array | None]:
        """A column, piece by piece."""
        return [self._piece(name, place) for place in range(len(self._sizes))]

    def _column(self, name: str) -> pa.Array | None:
        """All of a column; None where its pieces have several types, or are too much for one array."""
        if name not in self._whole:
            pieces = [self._read(place, name) for place in range(len(self._sizes))]
            kinds = {piece.type for piece in pieces if piece is not None and not pa.types.is_null(piece.type)}
            if len(kinds) > 1:
                self._pieces[name] = pieces
                self._whole[name] = None
            else:
                kind = kinds.pop() if kinds else pa.null()
                filled = [
                    pa.nulls(size, kind) if piece is None else piece.cast(kind)
                    for piece, size in zip(pieces, self._sizes, strict=True)
                ]
                try:
                    self._whole[name] = pa.concat_arrays(filled) if filled else pa.nulls(0)
                except pa.ArrowInvalid:  # offsets of 32 bits reach 2 GiB of text
                    self._pieces[name] = list(filled)
                    self._whole[name] = None
        return self._whole[name]

    def _piece(self, name: str, place: int) -> pa.Array | None:
        whole = self._column(name)
        if whole is None:
            return self._pieces[name][place]
        return whole.slice(sum(self._sizes[:place]), self._sizes[place])
