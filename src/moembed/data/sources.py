"""Training pairs from JSONL, Parquet and CSV files, checked when loaded and held as Arrow columns.

A source takes about as much memory as its texts have bytes; a row becomes a Python object only when drawn.
``iter_rows`` streams the same formats without holding them.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from moembed.config import Strict
from moembed.types import Pair, UserError

Row = dict[str, Any]
Numbered = tuple[int, Row | str]  # 1-based line or row number; a str says why the line is no row
Texts = tuple[str, str, list[str]]  # query, document, hard negatives

_FORMATS = (".jsonl", ".jsonl.gz", ".parquet", ".csv")
_BLOCK = 8192  # rows that are Python objects at one time while loading
_TEXT = pa.large_string()
_SCHEMA = pa.schema({"query": _TEXT, "document": _TEXT, "negatives": pa.large_list(_TEXT)})


class SourceConfig(Strict):
    """One file, or folder of Parquet files, of pairs.

    ``query`` and ``document`` name columns; every column whose name starts with ``negative`` holds hard
    negatives: in each row a text, a list of texts or nothing. ``weight`` is the relative number of batches to
    draw. ``limit`` takes the first good rows only. ``bad_rows`` says whether a row without usable texts stops
    the run or is skipped and counted. ``name`` is the file's unless given.
    """

    path: str
    name: str = ""
    query: str = "query"
    document: str = "document"
    negative: str = Field("negative", min_length=1)
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    limit: int | None = Field(None, ge=1)
    bad_rows: Literal["refuse", "skip"] = "refuse"

    def is_negative(self, column: str) -> bool:
        return column.startswith(self.negative) and column not in (self.query, self.document)


class Source:
    """Pairs by row number; ``skipped`` counts the bad rows left out."""

    def __init__(self, name: str, batches: Iterable[pa.RecordBatch], skipped: int = 0) -> None:
        table = pa.Table.from_batches(batches, _SCHEMA)
        assert len(table) > 0
        self.name = name
        self.skipped = skipped
        self._table = table.combine_chunks()  # so that drawing rows does not search chunks

    @classmethod
    def from_pairs(cls, name: str, pairs: Iterable[Pair]) -> Source:
        """A source of pairs in memory, at least one, taken as they are."""
        rows = ((pair.query, pair.document, list(pair.negatives)) for pair in pairs)
        return cls(name, [_columns(block) for block in iter(lambda: list(islice(rows, _BLOCK)), [])])

    def __len__(self) -> int:
        return len(self._table)

    def pairs(self, rows: Sequence[int] | np.ndarray) -> list[Pair]:
        """The pairs at ``rows``, in that order."""
        drawn = self._table.take(pa.array(rows, pa.int64()))
        columns = [drawn[name].to_pylist() for name in _SCHEMA.names]
        return [
            Pair(query, document, tuple(negatives))
            for query, document, negatives in zip(*columns, strict=True)
        ]


def load_source(config: SourceConfig) -> Source:
    """Read and check every row of ``config.path``, or as many as give ``config.limit`` good ones.

    A row is bad if its line is not a JSON object or has more fields than the CSV header, and if a text is
    missing (a hard negative may be), empty, not a string or not UTF-8.

    Raises:
        UserError: missing, damaged or empty file, unknown format or column, a bad row not to be skipped.
    """
    path = Path(config.path)
    skipped: list[str] = []
    texts = islice(_good_rows(path, config, skipped), config.limit)
    batches = [_columns(block) for block in iter(lambda: list(islice(texts, _BLOCK)), [])]
    if not batches:
        raise UserError(f"{path} holds no usable rows" + (f"; the first: {skipped[0]}" if skipped else ""))
    return Source(config.name or path.name.removesuffix(_format(path)), batches, len(skipped))


def iter_rows(path: Path, block: int) -> Iterator[list[Row]]:
    """Stream a file, or folder of Parquet files, as lists of at most ``block`` rows; blank lines are no rows.

    Texts are the caller's to check, with ``text_problem``.

    Raises:
        UserError: missing or damaged file, unknown format, a line that is not a row.
    """
    rows = _good_lines(path)
    while some := list(islice(rows, block)):
        yield some


def text_problem(value: Any) -> str | None:
    """Why ``value`` is not a text to learn from, or None if it is."""
    if value is None:
        return "is missing"
    if not isinstance(value, str):
        return f"is of type {type(value).__name__}, not a string"
    if not value or value.isspace():
        return "is empty"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    return None


def _good_lines(path: Path) -> Iterator[Row]:
    for file in _files(path):
        for number, row in _read(file):
            if isinstance(row, str):
                raise UserError(f"{_where(file, number)}: {row}")
            yield row


def _good_rows(path: Path, config: SourceConfig, skipped: list[str]) -> Iterator[Texts]:
    """Texts of the good rows; what is wrong with the others is appended to ``skipped``, or raised."""
    for file in _files(path):
        for number, row in _read(file, config):
            texts = row if isinstance(row, str) else _texts(row, config)
            if not isinstance(texts, str):
                yield texts
                continue
            problem = f"{_where(file, number)}: {texts}"
            if config.bad_rows == "refuse":
                raise UserError(f"{problem}; mend it, or set bad_rows=skip to leave such rows out")
            skipped.append(problem)


def _texts(row: Row, config: SourceConfig) -> Texts | str:
    """The texts of a row, or why it is bad."""
    named = []
    for column in (config.query, config.document):
        if column not in row:
            return f"there is no column {column!r}, only {', '.join(map(repr, row))}"
        named.append((column, row[column]))
    for column in filter(config.is_negative, row):
        values = row[column] if isinstance(row[column], list) else [row[column]]
        named += [(column, value) for value in values if value is not None]
    for column, text in named:
        if problem := text_problem(text):
            return f"column {column!r} {problem}"
    query, document, *negatives = (text for _, text in named)
    return query, document, negatives


def _columns(rows: Sequence[Texts]) -> pa.RecordBatch:
    arrays = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(_SCHEMA)]
    return pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise UserError(f"folder {path} holds no .parquet files")
        return files
    if not _format(path):
        raise UserError(f"{path} is none of {', '.join(_FORMATS)} or a folder of .parquet files")
    return [path]


def _format(path: Path) -> str:
    """The suffix that tells the format, or ""."""
    return next((suffix for suffix in _FORMATS if path.name.endswith(suffix)), "")


def _where(file: Path, number: int) -> str:
    return f"{file}, {'row' if _format(file) == '.parquet' else 'line'} {number}"


def _read(file: Path, config: SourceConfig | None = None) -> Iterator[Numbered]:
    """Rows of one file; with a ``config``, those of Parquet without the columns it does not use."""
    try:
        if _format(file) == ".parquet":
            yield from _parquet(file, config)
        elif _format(file) == ".csv":
            yield from _csv(file)
        else:
            yield from _jsonl(file)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise UserError(f"cannot read {file}, it may be damaged or cut off: {error}") from None


def _parquet(path: Path, config: SourceConfig | None) -> Iterator[Numbered]:
    with pq.ParquetFile(path, memory_map=True) as file:
        columns = file.schema_arrow.names
        if config and {config.query, config.document} <= set(
            columns
        ):  # else all, for the complaint lists them
            columns = [config.query, config.document, *filter(config.is_negative, columns)]
        number = 0
        for batch in file.iter_batches(_BLOCK, columns=columns):
            for row in _parquet_rows(batch):
                number += 1
                yield number, row


def _parquet_rows(batch: pa.RecordBatch) -> Iterable[Row]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return ({name: _value(batch[name][i]) for name in batch.schema.names} for i in range(len(batch)))


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return "\udcff"  # what "surrogateescape" makes of a stray byte: text_problem calls it "not UTF-8"


def _lines(path: Path) -> Iterator[str]:
    """Lines of text; bytes that are not UTF-8 become lone surrogates, so that row and column can be named."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield from file


def _jsonl(path: Path) -> Iterator[Numbered]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.isspace():
            yield number, _json_object(line)


def _json_object(line: str) -> Row | str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return text_problem(line) or f"not JSON ({str(error).partition(': line')[0]})"
    return value if isinstance(value, dict) else "not a JSON object with the columns as keys"


def _csv(path: Path) -> Iterator[Numbered]:
    """Rows by the number of their last line; an empty field counts as missing."""
    csv.field_size_limit(2**31 - 1)  # documents may be longer than the default allows
    reader = csv.DictReader(_lines(path), strict=True)
    try:
        header = reader.fieldnames or []
        if len(set(header)) < len(header):
            raise UserError(f"{path} names a column twice: {', '.join(header)}")
        for row in reader:
            values = {column: value or None for column, value in row.items()}
            yield reader.line_num, "more fields than the header" if len(row) > len(header) else values
    except csv.Error as error:
        raise UserError(f"{path}, after line {reader.line_num}: not CSV ({error})") from None
