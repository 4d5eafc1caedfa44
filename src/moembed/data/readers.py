"""Formats -> rows: JSONL, CSV and TSV (plain, gz, zst) and Parquet, streamed one file at a time."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moembed.data.files import File
from moembed.types import UserError

Row = dict[str, Any]
Numbered = tuple[int, Row | str]  # 1-based line or row number; a str says why the line is no row
Choose = Callable[[Sequence[str]], Sequence[str]]  # of the columns there are, those to read

BLOCK = 8192  # rows that are Python objects at one time


def read(file: File, choose: Choose | None = None) -> Iterator[Numbered]:
    """Rows of one file; blank lines are none. Of Parquet, only the columns that ``choose`` picks are read.

    Raises:
        UserError: a file that cannot be read to its end, or a CSV file that is none.
    """
    try:
        if file.format == "parquet":
            yield from _parquet(file, choose)
        elif file.format == "jsonl":
            yield from _jsonl(file)
        else:
            yield from _csv(file)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise UserError(f"cannot read {file}, it may be damaged or cut off: {error}") from None


def where(file: File, number: int) -> str:
    return f"{file}, {'row' if file.format == 'parquet' else 'line'} {number}"


def text_problem(value: Any) -> str | None:
    """Why ``value`` is not a text to learn from, or None if it is."""
    if isinstance(value, str) and (not value or value.isspace()):
        return "is empty"
    return string_problem(value)


def string_problem(value: Any) -> str | None:
    """Why ``value`` is not a string that can be stored, or None if it is; the empty string is one."""
    if value is None:
        return "is missing"
    if not isinstance(value, str):
        return f"is of type {type(value).__name__}, not a string"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    return None


def arrow_rows(batch: pa.RecordBatch) -> Iterable[Row]:
    """The rows of a batch; a text that is not UTF-8 becomes a lone surrogate, for ``text_problem``."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return ({name: _value(batch[name][i]) for name in batch.schema.names} for i in range(len(batch)))


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return "\udcff"  # what "surrogateescape" makes of a stray byte


def _parquet(file: File, choose: Choose | None) -> Iterator[Numbered]:
    with file.open() as stored, pq.ParquetFile(stored) as table:
        columns = choose(table.schema_arrow.names) if choose else None
        number = 0
        for batch in table.iter_batches(BLOCK, columns=columns):
            for row in arrow_rows(batch):
                number += 1
                yield number, row


def _jsonl(file: File) -> Iterator[Numbered]:
    with file.text() as lines:
        for number, line in enumerate(lines, start=1):
            if not line.isspace():
                yield number, _json_object(line)


def _json_object(line: str) -> Row | str:
    try:
        value = json.loads(line, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        return text_problem(line) or f"not JSON ({str(error).partition(': line')[0]})"
    if isinstance(value, dict):
        return value
    array = " but an array: write one object per line" if isinstance(value, list) else ""
    return f"not a JSON object with the columns as keys{array}"


def _unique(cells: list[tuple[str, Any]]) -> Row:
    """A JSON object; the ``json`` module alone would keep the last of two equal keys and drop the first."""
    row = dict(cells)
    if len(row) < len(cells):
        names = [name for name, _ in cells]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return row


def _csv(file: File) -> Iterator[Numbered]:
    """Rows by the number of their last line; an empty field counts as missing."""
    csv.field_size_limit(2**31 - 1)  # documents may be longer than the default allows
    with file.text() as lines:
        if file.format == "tsv":
            reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        else:
            reader = csv.DictReader(lines, strict=True)
        try:
            header = reader.fieldnames or []
            if len(set(header)) < len(header):
                raise UserError(f"{file} names a column twice: {', '.join(header)}")
            for row in reader:
                values = {column: value or None for column, value in row.items()}
                yield reader.line_num, "more fields than the header" if len(row) > len(header) else values
        except csv.Error as error:
            raise UserError(f"{file}, after line {reader.line_num}: not CSV ({error})") from None
