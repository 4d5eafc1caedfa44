"""Rows that know their place and give a cell as what it must be: tasks and BEIR folders are made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from moembed.data.columns import written_list
from moembed.data.files import File
from moembed.data.grades import finite, shown
from moembed.data.readers import read, text_problem, where
from moembed.types import UserError


@dataclass(frozen=True, slots=True)
class Record:
    """``cells`` by column, and the ``place`` they stand at; every method raises UserError with that place."""

    place: str
    cells: dict[str, Any]
    row_number: int = 0  # of the line or row in its file, from 1 on

    def text(self, column: str, may_be_empty: bool = False) -> str:
        value = self._cell(column)
        if may_be_empty and isinstance(value, str) and not value.strip():
            return value
        if problem := text_problem(value):
            raise UserError(f"{self.place}: {column!r} {problem}")
        return str(value)

    def label(self, column: str) -> str:
        """A text or a whole number, as some exports have ids and classes: 7, 7.0 and "7" are one."""
        value = self._cell(column)
        if type(value) is int or (isinstance(value, float) and value.is_integer()):
            return str(int(value))
        return self.text(column)

    def number(self, column: str) -> float:
        value = self._cell(column)
        if (number := finite(value)) is None:
            raise UserError(f"{self.place}: the {column} {shown(value)} is not a number")
        return number

    def texts(self, column: str) -> list[str]:
        """The distinct texts of a list, in its order; it may be written as text, and an empty cell is []."""
        values = self._cell(column)
        if isinstance(values, str):
            try:
                values = written_list(values)
            except ValueError as error:
                raise UserError(f"{self.place}: {column!r} {error}") from None
        if values is None and self.cells[column] is None:
            values = []
        if not isinstance(values, list):
            raise UserError(f"{self.place}: {column!r} must be a list of texts")
        for value in values:
            if problem := text_problem(value):
                raise UserError(f"{self.place}: a text of {column!r} {problem}")
        return list(dict.fromkeys(values))

    def language(self, default: str = "") -> str:
        """The cell of the column ``language``; ``default`` where there is none or it is empty."""
        return self.text("language") if self.cells.get("language") else default

    def _cell(self, column: str) -> Any:
        if column not in self.cells:
            raise UserError(f"{self.place}: no column {column!r}; the columns are {', '.join(self.cells)}")
        return self.cells[column]


def records(files: Iterable[File]) -> Iterator[Record]:
    """The rows of files in one of the formats of `moembed.data.files`, one file after the other.

    Raises:
        UserError: a file or a line that cannot be read.
    """
    for file in files:
        for number, row in read(file):
            place = where(file, number)
            if isinstance(row, str):
                raise UserError(f"{place}: {row}")
            yield Record(place, row, number)
