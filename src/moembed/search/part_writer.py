"""Writing a part of an index that is updated by id, and merging parts that have become small."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moembed.search.bm25 import Postings
from moembed.search.codecs import Codec
from moembed.search.exact import unit_rows
from moembed.search.index_ids import Keys, stored_keys
from moembed.search.index_manifest import Part
from moembed.search.index_parts import (
    ID,
    OURS,
    ROW_KEY,
    TEXT_KEY,
    as_rows,
    as_table,
    file_stamp,
    map_vectors,
    part_paths,
    read_table,
    require_same,
    write_rows,
    write_vectors,
)
from moembed.types import UserError

ADVICE = "the index is as it was: correct this and run the same command again"
_LIGHT_PARTS = 8  # parts at most half full that may stand beside one another


class PartWriter:
    """Writes parts under numbers that no version of the index has used.

    Args:
        codec: what vectors are stored in; None: float32.

    Attributes:
        next_number: of the next part.
    """

    def __init__(
        self, path: Path, dim: int, column: str | None, next_number: int, codec: Codec | None = None
    ) -> None:
        self.path, self.dim, self.column, self.next_number = path, dim, column, next_number
        self.codec = codec
        self._nothing = self.stored(np.zeros((0, dim), np.float32))

    def stored(self, vector_NM: np.ndarray) -> np.ndarray:
        """Vectors as they are stored.

        Raises:
            UserError: vectors that are not finite.
        """
        assert vector_NM.shape[1] == self.dim
        unit_rows(vector_NM, "vector")
        return vector_NM.astype(np.float32) if self.codec is None else self.codec.encode(vector_NM)

    def empty(self, rows: int) -> np.ndarray:
        """Room for so many stored vectors."""
        return np.empty((rows, self._nothing.shape[1]), self._nothing.dtype)

    def write(
        self,
        rows: Sequence[dict[str, Any]],
        keys: Keys,
        stored_NB: np.ndarray,
        truncated: int,
        source: str | None,
    ) -> Part:
        """Write a part whole; its vectors are given as ``stored`` makes them.

        Raises:
            UserError: a column with a name of ours, a full or read-only disk.
        """
        table = as_table(rows)
        if taken := set(OURS) & set(table.column_names):
            raise UserError(f"the column {min(taken)!r} has a name that moembed uses itself: rename it")
        assert stored_NB.shape == (len(rows), self._nothing.shape[1])
        assert stored_NB.dtype == self._nothing.dtype
        ours = {ID: pa.array(keys.ids, pa.string())}
        for name, key_N in ((TEXT_KEY, keys.text_N), (ROW_KEY, keys.row_N)):
            ours[name] = pa.array(key_N.tolist(), pa.binary())
        for name, values in ours.items():
            table = table.append_column(name, values)
        files = part_paths(self.path, self.next_number)
        write_rows(files[0], table, truncated, ADVICE)
        write_vectors(files[1], stored_NB, ADVICE)
        if self.column is not None:
            Postings.of([str(row.get(self.column) or "") for row in rows]).save(files[2], ADVICE)
        stamps = tuple(file_stamp(file) for file in (files if self.column is not None else files[:2]))
        self.next_number += 1
        return Part(self.next_number - 1, len(rows), stamps, None, truncated, source)

    def rows(self, part: Part) -> tuple[list[dict[str, Any]], Keys | None]:
        """Rows and keys of a part, the deleted ones too.

        Raises:
            DamagedPartError: the file is not what was written.
        """
        file, stamp = part.files(self.path)[0]
        require_same(file, stamp)
        return as_rows(read_table(file)), stored_keys(self.path, part)

    def vectors(self, part: Part) -> np.ndarray:
        """Vectors of a part as they are stored, mapped, the deleted ones too.

        Raises:
            DamagedPartError: the file is not what was written.
        """
        file, stamp = part.files(self.path)[1]
        require_same(file, stamp)
        return map_vectors(file, part.rows, self._nothing.shape[1], self._nothing.dtype)

    def terms(self, part: Part) -> Postings:
        """Terms of a part, those of deleted rows too.

        Raises:
            DamagedPartError: the file is not what was written.
        """
        file, stamp = part.files(self.path)[2]
        require_same(file, stamp)
        return Postings.load(file)

    def merged(self, parts: Sequence[Part], part_rows: int) -> list[Part]:
        """The parts with rows; where more than a few are at most half full, these merged in their order.

        So there are few more parts than full ones, and at most half of a part is of deleted rows.
        """
        parts = [part for part in parts if part.live]
        light = [part for part in parts if 2 * part.live <= part_rows]
        if len(light) <= _LIGHT_PARTS:
            return parts
        groups: list[list[Part]] = [[]]
        for part in light:
            if sum(one.live for one in groups[-1]) + part.live > part_rows:
                groups.append([])
            groups[-1].append(part)
        made = {group[0].number: self._merge(group) for group in groups if len(group) > 1}
        gone = {part.number for group in groups if len(group) > 1 for part in group[1:]}
        return [made.get(part.number, part) for part in parts if part.number not in gone]

    def _merge(self, parts: Sequence[Part]) -> Part:
        rows: list[dict[str, Any]] = []
        ids: list[str] = []
        text_keys, row_keys, vectors = [], [], []
        for part in parts:
            some, keys = self.rows(part)
            assert keys is not None
            live_K = part.live_rows()
            rows += [some[row] for row in live_K.tolist()]
            ids += [keys.ids[row] for row in live_K.tolist()]
            text_keys.append(keys.text_N[live_K])
            row_keys.append(keys.row_N[live_K])
            vectors.append(self.vectors(part)[live_K])
        keys = Keys(ids, np.concatenate(text_keys), np.concatenate(row_keys))
        sources = {part.source for part in parts}
        source = sources.pop() if len(sources) == 1 else None
        return self.write(rows, keys, np.concatenate(vectors), 0, source)
