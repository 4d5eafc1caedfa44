"""The id of every row of an index, and the hashes that tell whether its text or another column changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from moembed.data.readers import string_problem
from moembed.search.index_manifest import Part
from moembed.search.index_parts import ID, ROW_KEY, TEXT_KEY, as_rows, read_table
from moembed.search.vectors import text_keys
from moembed.types import UserError

ID_COLUMNS = ("_id", "id")
BY_TEXT = "none"  # in place of a column: the id of a row is the hash of its text


def choose_id_column(row: Mapping[str, Any], wanted: str | None) -> str | None:
    """The column that holds the ids, of a first row: the one that is wanted, else ``_id`` or ``id``.

    None: the id of a row is made of its text.
    """
    if wanted is not None:
        return None if wanted == BY_TEXT else wanted
    return next((name for name in ID_COLUMNS if name in row), None)


@dataclass
class RowIds:
    """Gives every row of a source its id, in order.

    Of a column, the id is its value as text. Without one it is the hash of the text, with ``-2`` and so on
    for the same text again.

    Raises:
        UserError: a row without an id, an id that is no text or whole number, or one that stands there twice.
    """

    source: Path | str
    id_column: str | None
    _row_of: dict[str, int] = field(default_factory=dict)
    _times: Counter[str] = field(default_factory=Counter)

    def take(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[str]:
        """The ids of the next rows."""
        if self.id_column is None:
            return [self._of_text(key.hex()[:16]) for key in text_keys(texts).tolist()]
        return [self._of_column(row, self.id_column) for row in rows]

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, known: str) -> bool:
        return known in self._row_of

    def _of_text(self, key: str) -> str:
        self._times[key] += 1
        found = key if self._times[key] == 1 else f"{key}-{self._times[key]}"
        self._row_of[found] = len(self._row_of) + 1
        return found

    def _of_column(self, row: Mapping[str, Any], column: str) -> str:
        number = len(self._row_of) + 1
        value = row.get(column)
        if not is_id(value):
            what = "is missing" if value is None or value == "" else f"is of type {type(value).__name__}"
            what = "is not UTF-8" if isinstance(value, str) and value else what
            raise UserError(
                f"{self.source}, row {number}: the id in column {column!r} {what}: give every row an id, a "
                f"text or a whole number, or choose another column with --id ({BY_TEXT}: made of the texts)"
            )
        found = str(value)
        if found in self._row_of:
            raise UserError(
                f"{self.source}: rows {self._row_of[found]} and {number} have the same id {found!r} in "
                f"column {column!r}: give each its own, or choose another column with --id"
            )
        self._row_of[found] = number
        return found


def is_id(value: Any) -> bool:
    """Whether ``value`` is a whole number, or a text that is not empty and can be stored."""
    if isinstance(value, str):
        return value != "" and string_problem(value) is None
    return isinstance(value, int) and not isinstance(value, bool)


def row_keys(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """128 bits of every row, equal for equal rows in whatever order their columns stand: ``(N,)`` of S16."""
    digests = [blake2b(_as_text(row).encode(), digest_size=16).digest() for row in rows]
    return np.frombuffer(b"".join(digests), dtype="S16")


def _as_text(row: Mapping[str, Any]) -> str:
    there = {name: value for name, value in row.items() if value is not None}
    return _ENCODER.encode(there)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, (date, datetime)) else str(value)


_ENCODER = json.JSONEncoder(sort_keys=True, default=_plain)  # json.dumps makes one for every row


@dataclass(frozen=True, slots=True)
class Keys:
    """Of the rows of a part, the deleted ones too: their ids, and the hashes of text and row."""

    ids: list[str]
    text_N: np.ndarray
    row_N: np.ndarray


def stored_keys(folder: Path, part: Part) -> Keys | None:
    """What the part says of its rows; None: it was written without."""
    table = read_table(part.files(folder)[0][0], [ID, TEXT_KEY, ROW_KEY])
    if ID not in table.column_names:
        return None
    return Keys(table[ID].to_pylist(), _fixed(table[TEXT_KEY]), _fixed(table[ROW_KEY]))


def made_keys(
    folder: Path, parts: Sequence[Part], column: str | None, id_column: str | None = None
) -> tuple[str | None, list[Keys]]:
    """The keys of parts that were written without, and the column that their ids are of.

    A column ``_id`` or ``id`` is one of ids if every row has another one; else ids are made of the texts.
    """
    rows_P = [as_rows(read_table(part.files(folder)[0][0])) for part in parts]
    rows = [row for rows in rows_P for row in rows]
    if id_column is None and rows:
        for name in ID_COLUMNS:
            values = [row.get(name) for row in rows]
            if all(map(is_id, values)) and len(set(map(str, values))) == len(values):
                id_column = name
                break
    ids = RowIds(folder, id_column)
    keys = []
    for some in rows_P:
        texts = [_as_text(row) if column is None else str(row.get(column)) for row in some]
        keys.append(Keys(ids.take(some, texts), text_keys(texts), row_keys(some)))
    return id_column, keys


def _fixed(column: Any) -> np.ndarray:
    return np.array(column.to_pylist(), dtype="S16") if len(column) else np.zeros(0, "S16")
