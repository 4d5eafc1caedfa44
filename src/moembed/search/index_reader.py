"""Reading the parts of an index: rows of the index are rows of parts, and every file is checked once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moembed.encoding import TokenVectors
from moembed.search.bm25 import Bm25, Postings
from moembed.search.codecs import Codec
from moembed.search.columns import Columns
from moembed.search.exact import norms_of, require_rows
from moembed.search.index_ids import made_keys
from moembed.search.index_manifest import Part
from moembed.search.index_parts import (
    as_rows,
    is_json,
    map_vectors,
    plain_column,
    read_rows,
    read_sample,
    read_schema,
    read_table,
    require_same,
    require_size,
)
from moembed.search.index_places import Lengths, Places
from moembed.search.matches import KeptMatches
from moembed.search.selectivity import Samples
from moembed.search.token_parts import joined, read_tokens, take
from moembed.search.where import Where
from moembed.search.where_mask import OTHER, column_kinds
from moembed.types import UserError

_GATHERED = 8192  # rows that are copied at a time


@dataclass(frozen=True, slots=True)
class _Map:
    """A file of vectors that is mapped."""

    file: str
    size: int
    vector_NM: np.ndarray


@dataclass(frozen=True)
class PartReader:
    """The rows of some parts that are not deleted, numbered through; a file is read when it is needed.

    Attributes:
        column: the column of the texts, if it is known.
        codec: what the vectors are stored in; they are read as it decodes them. None: float32.
        shares: what was estimated of conditions already.
        kept: the rows that met conditions.
        token_dim: of a multi-vector index, coordinates of the vector of a token.
    """

    path: Path
    parts: tuple[Part, ...]
    dim: int
    column: str | None
    codec: Codec | None = None
    token_dim: int | None = None
    _sound: set[Path] = field(default_factory=set, repr=False, compare=False)
    _maps: dict[int, _Map] = field(default_factory=dict, repr=False, compare=False)
    _tokens: dict[int, tuple[int, TokenVectors]] = field(default_factory=dict, repr=False, compare=False)

    shares: dict[Where, float | None] = field(default_factory=dict, repr=False, compare=False)
    kept: KeptMatches = field(default_factory=KeptMatches, repr=False, compare=False)

    def require_sizes(self) -> None:
        """
        Raises:
            DamagedPartError: a file is missing, or of another size than was written.
        """
        for part in self.parts:
            for file, stamp in part.files(self.path):
                require_size(file, stamp)

    def files(self) -> list[Path]:
        return [file for part in self.parts for file, _ in part.files(self.path)]

    @cached_property
    def _places(self) -> Places:
        return Places(self.parts)

    @property
    def live(self) -> list[np.ndarray]:
        """Numbers in each part of its rows that are not deleted."""
        return self._places.live

    def __len__(self) -> int:
        return len(self._places)

    @cached_property
    def columns(self) -> dict[str, str]:
        """The columns, and what they hold: see ``where_mask``."""
        found = column_kinds(self._schemas)
        for name in self._remade:
            columns = [self._column(part, name) for part in self.parts]
            types = [column.type for column in columns if column is not None]
            if len(types) == len(columns):
                found[name] = column_kinds([pa.field(name, kind)] for kind in types)[name]
        return found

    @cached_property
    def _schemas(self) -> list[list[pa.Field]]:
        return [read_schema(self._checked(part, 0)) for part in self.parts]

    @cached_property
    def _remade(self) -> set[str]:
        """Columns of several kinds, some perhaps in deleted rows alone: made again of the others."""
        if all(part.live == part.rows for part in self.parts):
            return set()
        return {name for name, kind in column_kinds(self._schemas).items() if kind == OTHER}

    def rows(self, indices: Iterable[int], with_ids: bool) -> list[tuple[str, dict[str, Any]]]:
        """Ids, if they are asked for, and rows, in the order of ``indices``.

        Raises:
            IndexError: a number that is not a row.
            DamagedPartError: a file is damaged.
        """
        index_K = np.fromiter(indices, dtype=np.int64)
        found: dict[int, tuple[str, dict[str, Any]]] = {}
        for part, where_K, row_K in self._places.of(index_K):
            rows, ids = read_rows(self._checked(self.parts[part], 0), row_K)
            if ids is None:
                ids = [self._made_ids[part][row] if with_ids else "" for row in row_K.tolist()]
            found.update(zip(index_K[where_K].tolist(), zip(ids, rows, strict=True), strict=True))
        return [found[row] for row in index_K.tolist()]

    def vectors_at(self, index_K: np.ndarray) -> np.ndarray:
        """Vectors of these rows, ``(K, dim)``."""
        vector_KM = np.empty((len(index_K), self.width), np.float32)
        if (index_K[1:] < index_K[:-1]).any():
            order_K = np.argsort(index_K, kind="stable")
            vector_KM[order_K] = self.vectors_at(index_K[order_K])
            return vector_KM
        for part, where_K, row_K in self._places.of(index_K):
            stored_NB = self._mapped(self.parts[part])
            if self.codec is None:  # to their place, and not to a copy first
                stored_NB.take(row_K, axis=0, out=vector_KM[where_K], mode="clip")
            else:
                vector_KM[where_K] = self._decoded(stored_NB[row_K])
        return vector_KM

    def tokens_at(self, index_K: np.ndarray) -> TokenVectors:
        """Token vectors of these rows, whose numbers ascend."""
        assert self.token_dim is not None
        found = [TokenVectors(np.zeros((0, self.token_dim), np.float32), np.zeros(0, np.int64))]
        for number, _, row_K in self._places.of(index_K):
            found.append(take(self._mapped_tokens(self.parts[number], self.token_dim), row_K))
        return joined(found)

    def _mapped_tokens(self, part: Part, token_dim: int) -> TokenVectors:
        size, known = self._tokens.get(part.number, (None, None))
        file = part.files(self.path)[3][0]
        if known is None or _size(str(file)) != size:  # see ``_mapped``
            known = read_tokens(self._checked(part, 0), file, token_dim)
            self._checked(part, 3)
            self._tokens[part.number] = file.stat().st_size, known
        return known

    def queries(self, query_QM: np.ndarray) -> np.ndarray:
        """Vectors of queries as they are compared with what ``vectors`` yields.

        Raises:
            UserError: they are no matrix of this width, or hold NaN or infinite numbers.
        """
        require_rows(query_QM, "query")
        if query_QM.shape[1] != self.dim:
            raise UserError(
                f"queries have {query_QM.shape[1]} dimensions and documents {self.dim}: embed both with one "
                "model and one dim"
            )
        return query_QM if self.codec is None else self.codec.query(query_QM)

    def vectors(self) -> Iterator[np.ndarray]:
        """The vectors of the rows of each part in turn; those of a whole part are mapped, not copied."""
        for part, row_K in zip(self.parts, self.live, strict=True):
            if len(row_K):
                vector_NM = self._mapped(part)
                yield self._decoded(vector_NM if len(row_K) == part.rows else vector_NM[row_K])

    def norms(self) -> Iterator[np.ndarray]:
        """The lengths of the vectors that ``vectors`` yields, kept in memory once they were computed."""
        for part, row_K in enumerate(self.live):
            if len(row_K):
                yield self._lengths.of(part)

    def gathered(self, row_K: np.ndarray) -> Iterator[np.ndarray]:
        """The vectors of some rows, given by ascending numbers, copied from all parts a block at a time."""
        for start in range(0, len(row_K), _GATHERED):
            yield self.vectors_at(row_K[start : start + _GATHERED])

    def gathered_norms(self, row_K: np.ndarray) -> Iterator[np.ndarray]:
        """The lengths of the vectors that ``gathered`` yields."""
        for start in range(0, len(row_K), _GATHERED):
            yield self.norms_at(row_K[start : start + _GATHERED])

    def norms_at(self, row_K: np.ndarray) -> np.ndarray:
        """The lengths of the vectors of some rows, given by ascending numbers."""
        return self._lengths.at(row_K)

    def split(self, flag_N: np.ndarray) -> Iterator[np.ndarray]:
        """What holds for each row, part by part as ``vectors`` yields them."""
        for begin, end in pairwise(self._places.begin_P):
            if end > begin:
                yield flag_N[begin:end]

    @cached_property
    def _lengths(self) -> Lengths:
        return Lengths(
            self._places,
            lambda part: norms_of(self._decoded(self._mapped(self.parts[part])))[self.live[part]],
        )

    @cached_property
    def rows_of_columns(self) -> Columns:
        """The columns of all rows."""

        def read(place: int, name: str) -> pa.Array | None:
            part = self.parts[place]
            found = self._column(part, name)
            return (
                found if found is None or part.live == part.rows else found.take(pa.array(self.live[place]))
            )

        return Columns([part.live for part in self.parts], read)

    @cached_property
    def samples(self) -> Samples | None:
        """What the rows of a condition are estimated from; None: a part says nothing."""
        tables = [read_sample(self._checked(part, 0)) for part in self.parts]
        return Samples.of(self.parts, tables, self._schemas)

    @cached_property
    def bm25(self) -> Bm25:
        return Bm25([self._postings(part) for part in self.parts], self.live)

    def _mapped(self, part: Part) -> np.ndarray:
        known = self._maps.get(part.number)
        # a file that was cut since it was mapped would end the process when it is read there
        if known is None or _size(known.file) != known.size:
            file = part.files(self.path)[1][0]
            (_, width), dtype = self._none.shape, self._none.dtype
            vector_NM = map_vectors(file, part.rows, width, dtype).view(np.ndarray)
            self._checked(part, 1)
            known = self._maps[part.number] = _Map(str(file), file.stat().st_size, vector_NM)
        return known.vector_NM

    @cached_property
    def _none(self) -> np.ndarray:
        """No vectors, as they are stored."""
        nothing_0M = np.zeros((0, self.dim), np.float32)
        return nothing_0M if self.codec is None else self.codec.encode(nothing_0M)

    @cached_property
    def width(self) -> int:
        """Coordinates of a vector as it is compared."""
        return self._decoded(self._none).shape[1]

    def _decoded(self, stored_NB: np.ndarray) -> np.ndarray:
        return stored_NB if self.codec is None else self.codec.decode(np.asarray(stored_NB))

    def _column(self, part: Part, name: str) -> pa.Array | None:
        """The values of a column of a part, those of deleted rows too; None: there is none."""
        table = read_table(self._checked(part, 0), [name])
        if name in self._remade:
            return self._left(part, name, table)
        there = name in table.column_names and not is_json(table.schema.field(name))
        return table[name].combine_chunks() if there else None

    def _left(self, part: Part, name: str, table: pa.Table) -> pa.Array | None:
        """A column without the values of deleted rows; None: of several kinds also then."""
        values: list[Any] = [None] * part.rows
        if name in table.column_names:
            rows = as_rows(table)
            for row in part.live_rows().tolist():
                values[row] = rows[row][name]
        return plain_column(values)

    def _postings(self, part: Part) -> Postings:
        """The terms of a part; of one that was written without, they are made now."""
        if len(part.stamps) > 2:
            return Postings.load(self._checked(part, 2))
        found = None if self.column is None else self._column(part, self.column)
        if found is None:
            raise UserError(
                f"hybrid search needs the text of the rows, and {self.path} does not say its column"
            )
        return Postings.of([text or "" for text in found.to_pylist()])

    @cached_property
    def _made_ids(self) -> list[list[str]]:
        """Ids of the rows of a folder that was written without."""
        for part in self.parts:
            self._checked(part, 0)
        return [keys.ids for keys in made_keys(self.path, self.parts, self.column)[1]]

    def _checked(self, part: Part, which: int) -> Path:
        """A file of a part, compared with its checksum when it is asked for the first time."""
        file, stamp = part.files(self.path)[which]
        if file not in self._sound:
            require_same(file, stamp)
            self._sound.add(file)
        return file


def _size(file: str) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:
        return None
