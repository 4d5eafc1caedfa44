"""Training pairs by row number: read and checked once, then drawn from memory or from a memory-mapped file.

A source may be many shards, larger than memory: rows stream from `moembed.data.layouts` through the checks
of this file into `moembed.data.cache`; a row becomes a Python object again only when drawn. ``iter_rows``
streams the same layouts without holding them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from moembed.config import Strict
from moembed.data.cache import Cache
from moembed.data.files import File, is_pattern
from moembed.data.fingerprint import fingerprint
from moembed.data.layouts import HF, Shard, plain_rows, shards
from moembed.data.readers import BLOCK, Numbered, Row, text_problem
from moembed.types import Pair, UserError

__all__ = ["Row", "Source", "SourceConfig", "iter_rows", "load_source", "text_problem"]

_TEXT = pa.large_string()
_SCHEMA = pa.schema(
    {
        "query": _TEXT,
        "document": _TEXT,
        "negatives": pa.large_list(_TEXT),
        "language": pa.string(),
        "group": pa.string(),
    }
)


class _Record(NamedTuple):
    """A row of ``_SCHEMA``."""

    query: str
    document: str
    negatives: Sequence[str] = ()
    language: str | None = None
    group: str | None = None


class SourceConfig(Strict):
    """A file, pattern, folder or data set of pairs: see `moembed.data.layouts.shards`.

    ``query`` and ``document`` name columns; every column whose name starts with ``negative`` holds hard
    negatives: in each row a text, a list of texts or nothing. A row without ``document`` whose ``pos`` is a
    list is in BGE layout: one pair per text of ``pos``, with the texts of ``neg`` as negatives. ``language``
    and ``group`` name columns of labels, kept where there are any.

    ``weight`` is the relative number of batches to draw. ``limit`` takes the first good pairs only.
    ``bad_rows`` and ``bad_shards`` say whether a row without usable texts, or a shard that cannot be read to
    its end, stops the run or is skipped and counted (the rows before the break stay). ``name`` is the file's
    unless given; ``split`` and ``subset`` choose from layouts that have them.
    """

    path: str = Field(min_length=1)
    name: str = ""
    query: str = "query"
    document: str = "document"
    negative: str = Field("negative", min_length=1)
    language: str | None = "language"
    group: str | None = "source"
    split: str | None = None
    subset: str | None = None
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    limit: int | None = Field(None, ge=1)
    bad_rows: Literal["refuse", "skip"] = "refuse"
    bad_shards: Literal["refuse", "skip"] = "refuse"

    def is_negative(self, column: str) -> bool:
        return column.startswith(self.negative) and column not in (self.query, self.document)

    def choose(self, columns: Sequence[str]) -> list[str]:
        """Of the columns of a table, those to read; all if one is missing, for the complaint lists them."""
        if not {self.query, self.document} <= set(columns):
            return list(columns)
        named = (self.query, self.document, self.language, self.group)
        return [column for column in columns if column in named or self.is_negative(column)]

    @property
    def title(self) -> str:
        """What the source is called: a pattern goes by its folder's name."""
        if self.name:
            return self.name
        parts = self.path.removeprefix(HF).rstrip("/").split("/")
        last = next((part for part in reversed(parts) if not is_pattern(part)), self.path)
        return File(None, last).stem


@dataclass(slots=True)
class Skipped:
    """What was left out of a source, and why the first bad row was."""

    rows: int = 0
    first: str = ""
    shards: list[str] = field(default_factory=list)


class Source:
    """Pairs by row number.

    ``skipped`` counts the bad rows that were left out, ``bad_shards`` says which shards were and why.
    """

    def __init__(self, name: str, table: pa.Table, skipped: Skipped | None = None) -> None:
        assert len(table) > 0
        left_out = skipped or Skipped()
        self.name = name
        self.skipped = left_out.rows
        self.bad_shards = tuple(left_out.shards)
        self._table = table
        self._columns = [table[name] for name in ("query", "document", "negatives")]

    @classmethod
    def from_pairs(cls, name: str, pairs: Iterable[Pair]) -> Source:
        """A source of pairs in memory, at least one, taken as they are."""
        records = (_Record(pair.query, pair.document, pair.negatives) for pair in pairs)
        return cls(name, pa.Table.from_batches(_batches(records), _SCHEMA).combine_chunks())

    def __len__(self) -> int:
        return len(self._table)

    def pairs(self, rows: Iterable[int] | np.ndarray) -> list[Pair]:
        """The pairs at ``rows``, in that order."""
        query, document, negatives = self._columns
        # one value at a time: `take` would first copy whole columns of a mapped table into memory
        return [
            Pair(query[row].as_py(), document[row].as_py(), tuple(negatives[row].as_py()))
            for row in map(int, rows)
        ]

    def __iter__(self) -> Iterator[Pair]:
        return (pair for row in range(len(self)) for pair in self.pairs([row]))

    def languages(self, rows: Iterable[int] | np.ndarray) -> list[str | None]:
        """The languages of ``rows``; None where the data does not say."""
        return self.labels("language", rows)

    def labels(
        self, label: Literal["language", "group"], rows: Iterable[int] | np.ndarray
    ) -> list[str | None]:
        """The labels of ``rows``; None where the data does not say."""
        column = self._table[label]
        return [column[int(row)].as_py() for row in rows]

    def count(self, label: Literal["language", "group"]) -> dict[str | None, int]:
        """Rows by label, most frequent first; None stands for rows without one."""
        counts = pc.value_counts(self._table[label]).to_pylist()
        counts.sort(key=lambda entry: (-entry["counts"], entry["values"] or ""))
        return {entry["values"]: entry["counts"] for entry in counts}

    def fingerprint(self) -> str:
        """What the pairs are, without their labels: equal texts, equal fingerprints."""
        return fingerprint(self._table.drop_columns(["language", "group"]))

    def describe(self) -> str:
        """``squad: 87,395 pairs, 3 bad rows skipped``."""
        parts = [f"{self.name}: {len(self):,} pairs"]
        if self.skipped:
            parts.append(f"{self.skipped:,} bad rows skipped")
        if self.bad_shards:
            parts.append(f"{len(self.bad_shards)} bad shards skipped, the first: {self.bad_shards[0]}")
        return ", ".join(parts)


def load_source(config: SourceConfig, progress: Callable[[int], None] | None = None) -> Source:
    """Read and check every row of ``config.path``, or as many as give ``config.limit`` good pairs.

    The rows of a source of more than 64 MiB go into a file of the cache, where the next run finds them.
    A row is bad if its line is not a JSON object or has more fields than the CSV header, and if a text is
    missing (a hard negative may be), empty, not a string or not UTF-8. A shard is bad if it cannot be read to
    its end, or if every one of its rows is bad.

    Args:
        progress: told the number of pairs after each block.

    Raises:
        UserError: missing, damaged or empty file, unknown format or column, a bad row not to be skipped.
    """
    found = shards(config.path, config.split, config.subset)
    cache = Cache([config.model_dump(exclude={"name", "weight"}), [shard.stamp() for shard in found]])
    if cached := cache.read():
        table, facts = cached
        return Source(config.title, table, Skipped(**facts))
    skipped = Skipped()
    batches = _batches(islice(_good_records(found, config, skipped), config.limit))
    table, facts = cache.keep(_told(batches, progress), _SCHEMA, lambda: asdict(skipped))
    if not len(table):
        first = skipped.first or next(iter(skipped.shards), "")
        raise UserError(f"{config.path} holds no usable rows" + (f"; the first: {first}" if first else ""))
    return Source(config.title, table, Skipped(**facts))


def iter_rows(path: str | Path, block: int) -> Iterator[list[Row]]:
    """Stream the rows of `moembed.data.layouts.shards` in lists of at most ``block``; blank lines are none.

    Texts are the caller's to check, with ``text_problem``.

    Raises:
        UserError: missing or damaged file, unknown format, a line that is not a row.
    """
    rows = plain_rows(path)
    while some := list(islice(rows, block)):
        yield some


def _good_records(found: Sequence[Shard], config: SourceConfig, skipped: Skipped) -> Iterator[_Record]:
    """Records of the good rows; what is wrong with the others is noted in ``skipped``, or raised."""
    for shard in found:
        good = bad = 0
        for number, row in _readable(shard, config, skipped):
            records = row if isinstance(row, str) else _records(row, config)
            if not isinstance(records, str):
                good += 1
                yield from records
                continue
            bad += 1
            problem = f"{shard.where(number)}: {records}"
            if config.bad_rows == "refuse":
                raise UserError(f"{problem}; mend it, or set bad_rows=skip to leave such rows out")
            skipped.first = skipped.first or problem
            skipped.rows += 1
        if bad and not good and len(found) > 1:
            _skip_shard(f"no row is usable, the last: {problem}", config, skipped)


def _readable(shard: Shard, config: SourceConfig, skipped: Skipped) -> Iterator[Numbered]:
    """The rows of a shard as far as it can be read."""
    try:
        yield from shard.rows(config.choose)
    except UserError as error:
        _skip_shard(str(error), config, skipped)


def _skip_shard(problem: str, config: SourceConfig, skipped: Skipped) -> None:
    if config.bad_shards == "refuse":
        raise UserError(f"{problem}; bad_shards=skip goes on with the next shard") from None
    skipped.shards.append(problem)


def _records(row: Row, config: SourceConfig) -> list[_Record] | str:
    """The pairs of a row, one for each positive, or why it is bad."""
    bge = config.document not in row and isinstance(row.get("pos"), list)
    positive = "pos" if bge else config.document
    for column in (config.query, positive):
        if column not in row:
            return f"there is no column {column!r}, only {', '.join(map(repr, row))}"
    documents = row["pos"] if bge else [row[positive]]
    negatives = [
        (column, value)
        for column in (("neg",) if bge else filter(config.is_negative, row))
        for value in _listed(row.get(column))
        if value is not None
    ]
    for column, text in [(config.query, row[config.query]), *((positive, d) for d in documents), *negatives]:
        if problem := text_problem(text):
            return f"column {column!r} {problem}"
    if not documents:
        return f"column {positive!r} is empty"
    wrong = [text for _, text in negatives]
    language, group = _label(row, config.language), _label(row, config.group)
    return [_Record(row[config.query], document, wrong, language, group) for document in documents]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _label(row: Row, column: str | None) -> str | None:
    value = row.get(column) if column else None
    return None if text_problem(value) else value


def _batches(records: Iterator[_Record]) -> Iterator[pa.RecordBatch]:
    while block := list(islice(records, BLOCK)):
        columns = zip(zip(*block, strict=True), _SCHEMA, strict=True)
        arrays = [pa.array(values, field.type) for values, field in columns]
        yield pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _told(
    batches: Iterator[pa.RecordBatch], progress: Callable[[int], None] | None
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        if progress:
            progress(len(batch))
