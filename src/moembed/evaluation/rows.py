"""Rows of the files that tasks are made of: each knows its place and gives a cell as what it must be."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from moembed.data.files import File
from moembed.data.readers import read, text_problem, where
from moembed.types import UserError


@dataclass(frozen=True, slots=True)
class Record:
    """``cells`` by column, and the ``place`` they stand at; every method raises UserError with that place."""

    place: str
    cells: dict[str, Any]

    def text(self, column: str, may_be_empty: bool = False) -> str:
        value = self._cell(column)
        if may_be_empty and isinstance(value, str) and not value.strip():
            return value
        if problem := text_problem(value):
            raise UserError(f"{self.place}: {column!r} {problem}")
        return value

    def label(self, column: str) -> str:
        """A text or a whole number, which some exports use for ids and classes: ``7`` and ``"7"`` are one."""
        value = self._cell(column)
        return str(value) if type(value) is int else self.text(column)

    def number(self, column: str) -> float:
        value = self._cell(column)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{self.place}: the {column} {value!r} is not a number")
        return number

    def texts(self, column: str) -> list[str]:
        """The distinct texts of a list, in its order."""
        values = self._cell(column)
        if not isinstance(values, list) or not values:
            raise UserError(f"{self.place}: {column!r} must be a list of at least one text")
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


def records(path: Path) -> Iterator[Record]:
    """The rows of a local file in one of the formats of `moembed.data.files`.

    Raises:
        UserError: a file or a line that cannot be read.
    """
    file = local(path)
    for number, row in read(file):
        place = where(file, number)
        if isinstance(row, str):
            raise UserError(f"{place}: {row}")
        yield Record(place, row)


def local(path: Path) -> File:
    return File(LocalFileSystem(), str(path))


def language_of(name: str) -> str:
    """The two letters that the name of a task ends in (``xquad-de``), or "" if it does not."""
    found = re.search(r"-([a-z]{2})$", name)
    return found[1] if found else ""


def numbered(texts: Iterable[str]) -> dict[str, int]:
    """Every distinct text and its number, in the order of first appearance."""
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}
