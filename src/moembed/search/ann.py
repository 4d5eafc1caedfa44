"""The approximate part of an index: what it covers, how it is made, and how it is searched.

The parts of an index stay the truth. The approximate part is made of them, in a folder ``ann-00000`` that
never changes, and the manifest says which parts it covers. Rows of parts that it does not cover yet are
compared one by one, rows that were deleted since are left out, and all scores are computed again from the
stored vectors: what an update adds is found at once. When a tenth of the rows are not covered, or covered and
deleted, an update makes it anew; so does another version of the engine.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from moembed.search import qdrant_edge
from moembed.search.exact import scores_of
from moembed.search.index_parts import DamagedPartError, require_same, require_size
from moembed.search.index_reader import PartReader
from moembed.search.where import Where
from moembed.search.where_qdrant import as_filter
from moembed.types import UserError

ENGINES = ("exact", qdrant_edge.NAME)
SLACK = 0.1  # the share of the rows that may be uncovered, or covered and deleted
NEAREST = 10  # neighbours that recall is measured with
_RESCORED = 8192  # rows whose vectors are copied at a time
ROW_BITS = 32  # bits of a point's number that say its row; those above say its part


@dataclass(frozen=True, slots=True)
class AnnPart:
    """What the manifest says of an approximate part.

    Attributes:
        version: of the engine that wrote it.
        folder: its name in the index.
        parts: numbers of the parts that it covers.
        fields: of every column that it can filter by, name and kind of the field.
        stamps: size and CRC-32 of every file.
        recall: of its ten nearest rows, the share that the exact search finds too, over ``sample`` rows.
        rows: points.
    """

    engine: str
    version: str
    folder: str
    parts: tuple[int, ...]
    fields: dict[str, tuple[str, str]]
    stamps: dict[str, str]
    recall: float
    sample: int
    rows: int

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> AnnPart | None:
        """That of a manifest; None: it is searched exactly."""
        found = manifest.get("ann")
        if found is None:
            return None
        fields = {column: (name, kind) for column, (name, kind) in found["fields"].items()}
        return cls(**{**found, "parts": tuple(found["parts"]), "fields": fields})

    def bytes(self, path: Path) -> int:
        """What it takes on the disk: its files have holes."""
        found = (path / self.folder / name for name in self.stamps)
        return sum(512 * file.stat().st_blocks for file in found if file.exists())

    def problem(self, path: Path, whole: bool) -> str | None:
        """What is wrong with its files; with ``whole`` also their contents are compared."""
        try:
            for name, stamp in self.stamps.items():
                (require_same if whole else require_size)(path / self.folder / name, stamp)
        except DamagedPartError as error:
            return error.what
        return None

    def is_current(self, reader: PartReader) -> bool:
        """Whether it covers enough of the rows of the index, and not too many that were deleted."""
        covered = set(self.parts)
        live = sum(part.live for part in reader.parts if part.number in covered)
        return max(len(reader) - live, self.rows - live) <= SLACK * len(reader)

    def __str__(self) -> str:
        return (
            f"{self.engine} finds {self.recall:.1%} of the {NEAREST} nearest rows that the exact search "
            f"finds, over {self.sample} of its rows"
        )


class AnnSearcher:
    """The approximate part of an open index."""

    def __init__(self, reader: PartReader, record: AnnPart, path: Path) -> None:
        self.record, self._reader = record, reader
        self._edge = qdrant_edge.EdgeSearcher(path / record.folder)

    @classmethod
    def open(cls, reader: PartReader, record: AnnPart, path: Path) -> AnnSearcher | None:
        """None, with a warning: it cannot be used, and the index is searched exactly."""
        try:
            if record.engine not in ENGINES:
                raise UserError("this moembed does not know it, a newer one made it")
            if problem := record.problem(path, whole=True):
                raise UserError(problem)
            return cls(reader, record, path)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            warnings.warn(
                f"{path} is searched exactly, not with {record.engine}: {reason}; "
                "`moembed index` makes that part anew",
                stacklevel=2,
            )
            return None

    def nearest(self, query_QM: np.ndarray, k: int, condition: Any | None = None) -> list[np.ndarray]:
        """For every query, the covered rows that are near it and not deleted: ``k`` or somewhat more of them,
        or fewer if the engine finds no more."""
        limit = k if self._all_live else math.ceil(1.5 * k) + 8
        found = self._edge.nearest(query_QM, limit, condition)
        return [row_K[row_K >= 0] for row_K in map(self._rows, found)]

    def condition(self, where: Where) -> Any | None:
        """A condition in the terms of the engine; None: it would understand it in another way."""
        return as_filter(where, self.record.fields, qdrant_edge.library())

    def rescored(self, query_QM: np.ndarray, found: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The exact cosines of every query with rows of its own, float64."""
        count_Q = np.array([len(row_C) for row_C in found], np.int64)
        scores: list[np.ndarray] = []
        step = max(1, _RESCORED // max(1, int(count_Q.max(initial=0))))  # queries at a time
        for start in range(0, len(found), step):
            some = slice(start, start + step)
            query_C = np.repeat(np.arange(len(count_Q[some])), count_Q[some])
            vector_CM = self._reader.vectors_at(np.concatenate(found[some]))
            score_C = scores_of(query_QM[some], query_C, vector_CM)
            scores += np.split(score_C, np.cumsum(count_Q[some])[:-1])
        return scores

    @cached_property
    def uncovered(self) -> np.ndarray:
        """Numbers of the rows that are not in it."""
        covered, start = set(self.record.parts), 0
        rows = [np.zeros(0, np.int64)]
        for part in self._reader.parts:
            if part.number not in covered:
                rows.append(start + np.arange(part.live))
            start += part.live
        return np.concatenate(rows)

    @cached_property
    def _all_live(self) -> bool:
        return self.record.rows == len(self._reader) - len(self.uncovered)

    @cached_property
    def _numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the rows of a part begin in the second array, and there their numbers; -1: deleted."""
        covered = set(self.record.parts)
        begin_P = np.full(1 + max((*covered, 0)), -1)
        numbers, start, stored = [np.zeros(0, np.int64)], 0, 0
        for part, row_N in zip(self._reader.parts, self._reader.live, strict=True):
            if part.number in covered:
                begin_P[part.number] = stored
                number_N = np.full(part.rows, -1)
                number_N[row_N] = start + np.arange(len(row_N))
                numbers.append(number_N)
                stored += part.rows
            start += part.live
        return begin_P, np.concatenate(numbers)

    def _rows(self, point_K: np.ndarray) -> np.ndarray:
        begin_P, number_N = self._numbers
        begin_K = begin_P[point_K >> ROW_BITS]
        row_K = np.full(len(point_K), -1)  # of a part that was merged into another
        there = begin_K >= 0
        row_K[there] = number_N[begin_K[there] + (point_K[there] & (2**ROW_BITS - 1))]
        return row_K
