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
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moembed.data.cache import Cache
from moembed.data.columns import ColumnUse
from moembed.data.fingerprint import fingerprint
from moembed.data.layouts import FileShard, Shard, corpus_shards, plain_rows, require_one_side, shards
from moembed.data.pairs import PairRecord, SourceConfig, document_of_row, pairs_of_row
from moembed.data.readers import BLOCK, Numbered, Row, text_problem
from moembed.types import Pair, UserError

__all__ = ["Row", "Source", "SourceConfig", "iter_rows", "load_corpus", "load_source", "text_problem"]

_TEXT = pa.large_string()
_SCHEMA = pa.schema(
    {
        "query": _TEXT,
        "document": _TEXT,
        "negatives": pa.large_list(_TEXT),
        "language": pa.string(),
        "group": pa.string(),
        "score": pa.float64(),
        "label": pa.string(),
        "negative_labels": pa.large_list(pa.string()),
        "scores": pa.large_list(pa.float64()),
    }
)
_GRADES = ("score", "label", "negative_labels")


ReadRow = Callable[[Row, SourceConfig, ColumnUse, bool], "list[PairRecord] | str"]


@dataclass(slots=True)
class LeftOut:
    """What was left out of a source, why the first bad row was, and what else needs a sentence."""

    rows: int = 0
    first: str = ""
    shards: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Source:
    """Pairs by row number.

    ``skipped`` counts the bad rows that were left out, ``bad_shards`` says which shards were and why.
    ``notes`` says, a sentence each, which columns were not used and what else looks unintended.
    """

    def __init__(self, name: str, table: pa.Table, left_out: LeftOut | None = None) -> None:
        assert len(table) > 0
        left_out = left_out or LeftOut()
        self.name = name
        self.notes = tuple(left_out.notes)
        self.skipped = left_out.rows
        self.bad_shards = tuple(left_out.shards)
        self._table = table
        self._columns = [table[name] for name in ("query", "document", "negatives")]
        # most sources have none of them, and reading a cell takes time
        self._graded = any(table[name].null_count < len(table) for name in ("score", "label"))
        self._scored = bool(pc.any(pc.greater(pc.list_value_length(table["scores"]), 0)).as_py())

    @classmethod
    def from_pairs(cls, name: str, pairs: Iterable[Pair]) -> Source:
        """A source of pairs in memory, at least one, taken as they are."""
        records = (
            PairRecord(
                pair.query, pair.document, pair.negatives,
                score=pair.score, label=pair.label, negative_labels=pair.negative_labels, scores=pair.scores,
            )
            for pair in pairs
        )  # fmt: skip
        return cls(name, pa.Table.from_batches(_batches(records), _SCHEMA).combine_chunks())

    def __len__(self) -> int:
        return len(self._table)

    def pairs(self, rows: Iterable[int] | np.ndarray) -> list[Pair]:
        """The pairs at ``rows``, in that order."""
        query, document, negatives = self._columns
        # one value at a time: `take` would first copy whole columns of a mapped table into memory
        return [
            Pair(
                query[row].as_py(), document[row].as_py(), tuple(negatives[row].as_py()), *self._grades(row),
                tuple(self._table["scores"][row].as_py()) if self._scored else (),
            )
            for row in map(int, rows)
        ]  # fmt: skip

    def _grades(self, row: int) -> tuple[float | None, str | None, tuple[str, ...]]:
        if not self._graded:
            return None, None, ()
        score, label, labels = (self._table[name][row].as_py() for name in _GRADES)
        return score, label, tuple(labels)

    def __iter__(self) -> Iterator[Pair]:
        return (pair for row in range(len(self)) for pair in self.pairs([row]))

    def languages(self, rows: Iterable[int] | np.ndarray) -> list[str | None]:
        """The languages of ``rows``; None where the data does not say."""
        return self.labels("language", rows)

    def labels(
        self, label: Literal["language", "group", "label"], rows: Iterable[int] | np.ndarray
    ) -> list[str | None]:
        """The labels of ``rows``; None where the data does not say."""
        column = self._table[label]
        return [column[int(row)].as_py() for row in rows]

    def count(self, label: Literal["language", "group", "label"]) -> dict[str | None, int]:
        """Rows by label, most frequent first; None stands for rows without one."""
        counts = pc.value_counts(self._table[label]).to_pylist()
        counts.sort(key=lambda entry: (-entry["counts"], entry["values"] or ""))
        return {entry["values"]: entry["counts"] for entry in counts}

    def count_negatives(self) -> tuple[int, int]:
        """The pairs that have hard negatives, and how many these are."""
        lengths = pc.list_value_length(self._table["negatives"])
        return pc.sum(pc.greater(lengths, 0)).as_py() or 0, pc.sum(lengths).as_py() or 0

    def count_scores(self) -> tuple[int, int]:
        """The pairs without a score, and how many different scores there are."""
        scores = self._table["score"]
        return scores.null_count, pc.count_distinct(scores).as_py()

    def count_unscored(self) -> int:
        """The pairs whose candidates have no scores."""
        return int(pc.sum(pc.equal(pc.list_value_length(self._table["scores"]), 0)).as_py() or 0)

    def remarks(self) -> list[str]:
        """``notes``, and what was left out, a sentence each: for a reader who is not shown ``describe``."""
        rows = [f"{self.skipped:,} bad rows were skipped"] if self.skipped else []
        return [*self.notes, *rows, *(f"a bad shard was skipped: {problem}" for problem in self.bad_shards)]

    def fingerprint(self) -> str:
        """What the pairs are, without language and group: equal texts and grades, equal fingerprints."""
        unused = ([] if self._graded else list(_GRADES)) + ([] if self._scored else ["scores"])
        return fingerprint(self._table.drop_columns(["language", "group", *unused]))

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
        UserError: missing, damaged or empty file, unknown format or column, a bad row not to be skipped, a
            folder of the sides of a split.
    """
    require_one_side(config.path)
    return _load(config, shards(config.path, config.split, config.subset), pairs_of_row, progress)


def load_corpus(config: SourceConfig) -> Source:
    """The documents of ``config.path`` as a source whose pairs are (document, document).

    A column ``title``, or the one that ``config.title`` names, is put in front of the column
    ``config.document``, as in BEIR. Of a folder with a table ``corpus``, that table is read.

    Raises:
        UserError: as ``load_source``.
    """
    return _load(config, corpus_shards(config.path, config.split, config.subset), document_of_row, None)


def _load(
    config: SourceConfig, found: Sequence[Shard], read_row: ReadRow, progress: Callable[[int], None] | None
) -> Source:
    options = config.model_dump(exclude={"name", "weight", "license", "origin"})
    cache = Cache([read_row.__name__, options, [shard.stamp() for shard in found]])
    if cached := cache.read():
        table, facts = cached
        return Source(config.called, table, LeftOut(**facts))
    left_out, use = LeftOut(), ColumnUse()

    def facts_now() -> dict[str, Any]:
        left_out.notes = use.notes(config.remarks(use.unused)) + config.not_found(use.seen)
        return asdict(left_out)

    batches = _batches(islice(_good_records(found, config, read_row, left_out, use), config.limit))
    table, facts = cache.keep(_told(batches, progress), _SCHEMA, facts_now)
    if not len(table):
        first = left_out.first or next(iter(left_out.shards), "")
        raise UserError(f"{config.path} holds no usable rows" + (f"; the first: {first}" if first else ""))
    return Source(config.called, table, LeftOut(**facts))


def iter_rows(path: str | Path, block: int) -> Iterator[list[Row]]:
    """Stream the rows of `moembed.data.layouts.shards` in lists of at most ``block``; blank lines are none.

    Texts are the caller's to check, with ``text_problem``.

    Raises:
        UserError: missing or damaged file, unknown format, a line that is not a row.
    """
    rows = plain_rows(path)
    while some := list(islice(rows, block)):
        yield some


def _good_records(
    found: Sequence[Shard], config: SourceConfig, read_row: ReadRow, left_out: LeftOut, use: ColumnUse
) -> Iterator[PairRecord]:
    """Records of the good rows; what is wrong with the others is noted in ``left_out``, or raised."""
    for shard in found:
        good = bad = 0
        quotes = isinstance(shard, FileShard) and shard.file.format == "tsv"
        for number, row in _readable(shard, config, left_out, use):
            records = row if isinstance(row, str) else read_row(row, config, use, quotes)
            if not isinstance(records, str):
                good += 1
                yield from records
                continue
            bad += 1
            problem = f"{shard.where(number)}: {records}"
            if config.bad_rows == "refuse":
                raise UserError(f"{problem}; {config.advice(records)}")
            left_out.first = left_out.first or problem
            left_out.rows += 1
        if bad and not good and len(found) > 1:
            _skip_shard(f"no row is usable, the last: {problem}", config, left_out)


def _readable(shard: Shard, config: SourceConfig, left_out: LeftOut, use: ColumnUse) -> Iterator[Numbered]:
    """The rows of a shard as far as it can be read."""

    def choose(columns: Sequence[str]) -> Sequence[str]:
        use.see(columns)
        return config.choose(columns)

    try:
        for number, row in shard.rows(choose):
            if not isinstance(row, str):
                use.see(row)
            yield number, row
    except UserError as error:
        _skip_shard(str(error), config, left_out)


def _skip_shard(problem: str, config: SourceConfig, left_out: LeftOut) -> None:
    if config.bad_shards == "refuse":
        raise UserError(f"{problem}; {config.skip_shards_hint}") from None
    left_out.shards.append(problem)


def _batches(records: Iterator[PairRecord]) -> Iterator[pa.RecordBatch]:
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
