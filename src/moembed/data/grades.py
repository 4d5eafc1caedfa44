"""Scores and labels of pairs, for the losses that look at them: cells -> numbers and classes."""

from __future__ import annotations

import json
from typing import Any

from moembed.data.columns import as_list, missing_column
from moembed.data.readers import Row, text_problem

_LARGEST = 3.4028234e38  # of float32, in which losses compute
_SHOWN = 60  # letters of a cell in a sentence
NEGATIVE_LABELS = "negative_labels"  # the column of the classes of a row's hard negatives


def score_of(row: Row, column: str) -> float:
    """The number in ``column``; formats without types write it as text.

    Raises:
        ValueError: no such column, or no finite number in it.
    """
    value = _cell(row, column)
    if (number := finite(value)) is None:
        raise ValueError(
            f"column {column!r} " + ("is missing" if value is None else f"is {shown(value)}, no number")
        )
    return number


def finite(value: Any) -> float | None:
    """A cell as a number that a float of 32 bits can hold; None: it is none."""
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):
        return None
    return number if abs(number) <= _LARGEST else None  # false of NaN, too


def shown(value: Any) -> str:
    """A cell in a sentence: the beginning of a long one."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def label_of(row: Row, column: str) -> str:
    """The class in ``column``: a text or a whole number; 7, 7.0 and "7" are one.

    Raises:
        ValueError: no such column, or something else in it.
    """
    return _class(_cell(row, column), column)


def labels_of(row: Row, negatives: int) -> list[str]:
    """The classes of a row's hard negatives, as many as it has of these.

    Raises:
        ValueError: there are more or fewer, or something else in the column.
    """
    value = row.get(NEGATIVE_LABELS)
    listed = as_list(value)
    values = ([] if value is None else [value]) if listed is None else listed
    if len(values) != negatives:
        raise ValueError(
            f"there are {negatives} hard negatives and {len(values)} {NEGATIVE_LABELS}: a negative whose "
            "class is not known may be none"
        )
    return [_class(value, NEGATIVE_LABELS) for value in values]


def scores_of(row: Row, column: str, documents: int, negatives: int) -> list[float]:
    """The numbers in ``column``: of each document of the row, then of each of its hard negatives.

    Raises:
        ValueError: no such column, more or fewer numbers, or something else in it.
    """
    value = _cell(row, column)
    if isinstance(value, str):  # formats without lists write them as text
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"column {column!r} is {shown(value)}, no list of numbers") from None
    if not isinstance(value, list):
        raise ValueError(f"column {column!r} " + ("is missing" if value is None else "is no list of numbers"))
    if len(value) != documents + negatives:
        raise ValueError(
            f"column {column!r} has {len(value)} scores, and the row {documents + negatives} texts to have "
            f"one: {documents} that answer the query and {negatives} hard negatives, in this order"
        )
    return [score_of({column: number}, column) for number in value]


def _cell(row: Row, column: str) -> Any:
    if column not in row:
        raise ValueError(missing_column(column, row))
    return row[column]


def _class(value: Any, column: str) -> str:
    if type(value) is int or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if problem := text_problem(value):
        raise ValueError(f"column {column!r} {problem}")
    return str(value)
