"""Writing a part of an index that is updated by id, and merging parts that have become small."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moembed.encoding import TokenVectors
from moembed.search.bm25 import Postings
from moembed.search.codecs import Codec, keeps_zeros
from moembed.search.exact import require_rows
from moembed.search.fde import Fde
from moembed.search.index_ids import Keys, stored_keys
from moembed.search.index_manifest import Part
from moembed.search.index_parts import (
    ID,
    OURS,
    ROW_KEY,
    TEXT_KEY,
    TOKENS,
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
from moembed.search.token_parts import joined, read_tokens, take
from moembed.types import UserError

ADVICE = "the index is as it was: correct this and run the same command again"
_LIGHT_PARTS = 8  # parts at most half full that may stand beside one another


class PartWriter:
    """Writes parts under numbers that no version of the index has used.

    Args:
        codec: what vectors are stored in; None: float32.

    Attributes:
        next_number: of the next part.
        fde: of a multi-vector index, the encoding of token vectors; None: rows have one vector each.
    """

    def __init__(
        self, path: Path, dim: int, column: str | None, next_number: int, codec: Codec | None = None,
        fde: Fde | None = None,
    ) -> None:  # fmt: skip
        self.path, self.dim, self.column, self.next_number = path, dim, column, next_number
        self.codec, self.fde = codec, fde
        self._nothing = self.stored(np.zeros((0, dim), np.float32), [])

    def stored(self, vector_NM: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """Vectors as they are stored.

        Raises:
            UserError: vectors that are not finite; of codes, a vector of zeros, which has no direction.
        """
        assert vector_NM.shape[1] == self.dim
        require_rows(vector_NM, "vector")
        if self.codec is not None and not keeps_zeros(self.codec) and not vector_NM.any(axis=1).all():
            known = ids[int(np.argmin(vector_NM.any(axis=1)))]
            raise UserError(
                f"the text of the row {known!r} has no token, and a code would give it a direction: leave "
                "the row out"
            )
        return vector_NM.astype(np.float32) if self.codec is None else self.codec.encode(vector_NM)

    def empty(self, rows: int) -> np.ndarray:
        """Room for so many stored vectors."""
        return np.empty((rows, self._nothing.shape[1]), self._nothing.dtype)

    def write(
        self,
        rows: Sequence[dict[str, Any]],
        keys: Keys,
        stored: np.ndarray | TokenVectors,
        truncated: int,
        source: str | None,
    ) -> Part:
        """Write a part whole; its vectors are given as ``stored`` makes them, or as token vectors.

        Raises:
            UserError: a column with a name of ours, a text without a token, a full or read-only disk.
        """
        table = as_table(rows)
        if taken := set(OURS) & set(table.column_names):
            raise UserError(f"the column {min(taken)!r} has a name that moembed uses itself: rename it")
        ours = {ID: pa.array(keys.ids, pa.string())}
        if isinstance(stored, TokenVectors):
            assert self.fde is not None
            self._require_tokens(keys, stored)
            stored_NB = self.fde.documents(stored)
            ours[TOKENS] = pa.array(stored.length_N, pa.int32())
        else:
            stored_NB = stored
        assert stored_NB.shape == (len(rows), self._nothing.shape[1])
        assert stored_NB.dtype == self._nothing.dtype
        for name, key_N in ((TEXT_KEY, keys.text_N), (ROW_KEY, keys.row_N)):
            ours[name] = pa.array(key_N.tolist(), pa.binary())
        for name, values in ours.items():
            table = table.append_column(name, values)
        files = part_paths(self.path, self.next_number)
        write_rows(files[0], table, truncated, ADVICE)
        write_vectors(files[1], stored_NB, ADVICE)
        if self.column is not None:
            Postings.of([str(row.get(self.column) or "") for row in rows]).save(files[2], ADVICE)
        written = files[: 2 + (self.column is not None)]
        if isinstance(stored, TokenVectors):
            write_vectors(files[3], stored.vector_TM, ADVICE)
            written = files
        stamps = tuple(file_stamp(file) for file in written)
        self.next_number += 1
        return Part(self.next_number - 1, len(rows), stamps, None, truncated, source)

    def _require_tokens(self, keys: Keys, tokens: TokenVectors) -> None:
        if not tokens.length_N.all():
            known = keys.ids[int(np.argmin(tokens.length_N))]
            raise UserError(
                f"the text of the row {known!r} has no token beside the prompt, so no query could be "
                "compared with it: leave the row out"
            )
        require_rows(tokens.vector_TM, "token vector")

    def payload(self, part: Part) -> np.ndarray | TokenVectors:
        """What was embedded: vectors, or in a multi-vector index token vectors; mapped, the deleted ones too.

        Raises:
            DamagedPartError: a file is not what was written.
        """
        return self.vectors(part) if self.fde is None else self.tokens(part)

    def tokens(self, part: Part) -> TokenVectors:
        """Token vectors of a part of a multi-vector index, mapped, the deleted ones too.

        Raises:
            DamagedPartError: a file is not what was written.
        """
        assert self.fde is not None
        (rows_file, _), _, _, (file, stamp) = part.files(self.path)
        require_same(file, stamp)
        return read_tokens(rows_file, file, self.fde.config.token_dim)

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
        text_keys, row_keys = [], []
        vectors: list[np.ndarray] = []
        tokens: list[TokenVectors] = []
        for part in parts:
            some, keys = self.rows(part)
            assert keys is not None
            live_K = part.live_rows()
            rows += [some[row] for row in live_K.tolist()]
            ids += [keys.ids[row] for row in live_K.tolist()]
            text_keys.append(keys.text_N[live_K])
            row_keys.append(keys.row_N[live_K])
            if self.fde is None:
                vectors.append(self.vectors(part)[live_K])
            else:
                tokens.append(take(self.tokens(part), live_K))
        keys = Keys(ids, np.concatenate(text_keys), np.concatenate(row_keys))
        sources = {part.source for part in parts}
        source = sources.pop() if len(sources) == 1 else None
        stored = joined(tokens) if tokens else np.concatenate(vectors)
        return self.write(rows, keys, stored, 0, source)
