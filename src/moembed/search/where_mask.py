"""Which rows of a table meet a condition: ``where`` compiled to masks by pyarrow."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moembed.data.readers import string_problem
from moembed.search.index_parts import is_json
from moembed.search.where import And, Compare, Not, Value, Where, comparisons
from moembed.types import UserError

Column = Any  # a pa.Array or pa.ChunkedArray
_COMPARE = {
    "=": pc.equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_OF_ARRAYS = {"=": np.equal, "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
# What a column may hold, and what it can be compared with.
NUMBER, TEXT, FLAG, TIME, OTHER, EMPTY = "numbers", "text", "true or false", "times", "mixed", "nothing"
_MEANT = {
    NUMBER: "numbers: compare it with a number",
    TEXT: 'text: compare it with a text in quotes, as "de"',
    FLAG: "true or false: compare it with = true or = false",
    TIME: 'dates or times: compare it with one in quotes, as "2024-01-31"',
}


def kind_of(field: pa.Field) -> str:
    """What a column of a part holds."""
    kind = field.type
    if is_json(field):
        return OTHER
    if pa.types.is_null(kind):
        return EMPTY
    if pa.types.is_boolean(kind):
        return FLAG
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return NUMBER
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return TEXT
    return TIME if pa.types.is_timestamp(kind) or pa.types.is_date(kind) else OTHER


def column_kinds(schemas: Iterable[Iterable[pa.Field]]) -> dict[str, str]:
    """The columns of all parts and what they hold; ``mixed`` where parts differ or values are nested."""
    kinds: dict[str, str] = {}
    for schema in schemas:
        for field in schema:
            kind, before = kind_of(field), kinds.get(field.name, EMPTY)
            kinds[field.name] = kind if before == EMPTY else before if kind in (EMPTY, before) else OTHER
    return kinds


def require_columns(where: Where, kinds: Mapping[str, str]) -> None:
    """Refuse a condition that these columns cannot answer.

    Raises:
        UserError: a column that is not there, or holds something that its value cannot be compared with.
    """
    for one in comparisons(where):
        kind = kinds.get(one.column)
        if kind is None:
            close = difflib.get_close_matches(one.column, kinds, n=1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise UserError(
                f"where: there is no column {one.column!r}{meant}; there are {', '.join(kinds) or 'none'}"
            )
        if kind == OTHER:
            raise UserError(
                f"where: column {one.column!r} holds lists, objects or values of several kinds: "
                "a filter needs a column of numbers, text, true or false, or dates"
            )
        values = one.value if isinstance(one.value, tuple) else (one.value,)
        for value in values:
            _require_value(one, kind, value)


def _require_value(one: Compare, kind: str, value: Value) -> None:
    ordered = one.op not in ("=", "!=", "in")
    if value is None:
        if ordered:
            raise UserError(f"where: nothing is {one.op} null: use = null or != null ({one.column!r})")
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"where: {one.column!r} cannot be compared with {value}: give a finite number")
    if isinstance(value, str) and string_problem(value):
        raise UserError(f"where: the text {value!r}, given for {one.column!r}, is not UTF-8")
    if kind == EMPTY:
        return
    given = FLAG if isinstance(value, bool) else TEXT if isinstance(value, str) else NUMBER
    if given != (TEXT if kind == TIME else kind) or (ordered and kind == FLAG):
        raise UserError(f"where: column {one.column!r} holds {_MEANT[kind]}, not with {one.op} {value!r}")
    if kind == TIME:
        _instant(one.column, str(value))


def mask(where: Where, column: Callable[[str], Column | None], rows: int) -> np.ndarray:
    """Which of ``rows`` rows meet a condition that ``require_columns`` accepts: ``(rows,)`` of bool.

    Args:
        column: the values of a column; None: all of them are missing.
    """
    if isinstance(where, Not):
        return ~mask(where.item, column, rows)
    if isinstance(where, Compare):
        if where.op == "!=":
            return ~_compare(where.column, "=", where.value, column(where.column), rows)
        return _compare(where.column, where.op, where.value, column(where.column), rows)
    # one after the other: a list of thousands would hold as many masks at once
    is_and = isinstance(where, And)
    found = np.full(rows, is_and)
    for item in where.items:
        (np.logical_and if is_and else np.logical_or)(found, mask(item, column, rows), out=found)
    return found


def _compare(name: str, op: str, value: Any, found: Column | None, rows: int) -> np.ndarray:
    if found is None or pa.types.is_null(found.type):
        return np.full(rows, (None in value) if op == "in" else value is None)
    if op == "in":
        return _among(name, dict.fromkeys(value), found, rows)
    if value is None:
        return _flags(found.is_null())
    if pa.types.is_integer(found.type):
        return _compare_integers(op, value, found)
    if pa.types.is_decimal(found.type) or pa.types.is_floating(found.type):
        return _compare_floats(op, value, found.cast(pa.float64()))
    if pa.types.is_timestamp(found.type) or pa.types.is_date(found.type):
        found, value = _as_times(name, found, value)
    return _flags(_COMPARE[op](found, pa.scalar(value, found.type)))


def _among(name: str, values: Iterable[Value], found: Column, rows: int) -> np.ndarray:
    """``in``: numbers and texts by a hash table, whose cost does not grow with the list for every row."""
    plain = [value for value in values if value is not None]
    there = _flags(found.is_null()) if None in values else np.zeros(rows, bool)
    if pa.types.is_string(found.type) or pa.types.is_large_string(found.type):
        return there | _flags(pc.is_in(found, value_set=pa.array(plain, found.type)))
    if pa.types.is_integer(found.type):
        low, high = _limits(found)
        whole = [int(value) for value in plain if value == int(value) and low <= value <= high]
        return there | _flags(pc.is_in(found, value_set=pa.array(whole, found.type)))
    if pa.types.is_decimal(found.type) or pa.types.is_floating(found.type):
        exact = [near for value in plain if (near := _near(value)) == value]
        return there | np.isin(found.cast(pa.float64()).to_numpy(zero_copy_only=False), exact)
    for value in plain:
        there |= _compare(name, "=", value, found, rows)
    return there


def _compare_floats(op: str, value: float, found: Column) -> np.ndarray:
    """Exact also for an integer that stands between two floats."""
    near = _near(value)
    if near != value:
        if op == "=":
            return np.zeros(len(found), bool)
        op = op[0] if (near > value) == (op[0] == "<") else f"{op[0]}="
    return _compared(op, near, found)


def _near(value: Any) -> float:
    """The float beside a number."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _compare_integers(op: str, value: float, found: Column) -> np.ndarray:
    """Exact also where a float cannot hold the integer, and for values that the type of the column cannot."""
    if value != int(value):
        if op == "=":
            return np.zeros(len(found), bool)
        op, value = ("<=", math.floor(value)) if op in ("<", "<=") else (">=", math.ceil(value))
    value = int(value)
    low, high = _limits(found)
    if not low <= value <= high:
        below = value < low
        true = op in ((">", ">=") if below else ("<", "<="))
        return _flags(found.is_valid()) if true else np.zeros(len(found), bool)
    return _compared(op, value, found)


def _compared(op: str, value: float, found: Column) -> np.ndarray:
    """Numbers with one that their type holds."""
    if isinstance(found, pa.Array) and not found.null_count:
        # numpy writes bytes at once, in a fourth of the time that pyarrow takes for bits and their unpacking
        return np.asarray(_OF_ARRAYS[op](found.to_numpy(zero_copy_only=False), value))
    return _flags(_COMPARE[op](found, pa.scalar(value, found.type)))


def _limits(found: Column) -> tuple[int, int]:
    about = np.iinfo(found.type.to_pandas_dtype())
    return int(about.min), int(about.max)


def _as_times(name: str, found: Column, value: str) -> tuple[Column, datetime]:
    """Both in microseconds; a time without a zone is one of UTC where the column has zones."""
    zone = getattr(found.type, "tz", None)
    moment = _instant(name, value)
    if moment.tzinfo is not None and zone is None:
        raise UserError(f"where: column {name!r} holds times without a zone: leave the zone of {value!r} out")
    if zone is not None and moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return found.cast(pa.timestamp("us", zone), safe=False), moment


def _instant(name: str, value: str) -> datetime:
    text = value[:-1] + "+00:00" if value.endswith(("Z", "z")) else value
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f'where: column {name!r} holds dates or times, and {value!r} is none: write "2024-01-31" or '
            '"2024-01-31 18:30"'
        ) from None


def _flags(found: Column) -> np.ndarray:
    """True, false or missing as true or false."""
    filled = pc.fill_null(found, False) if found.null_count else found
    if isinstance(filled, pa.ChunkedArray):
        filled = filled.combine_chunks()
    return np.asarray(filled.to_numpy(zero_copy_only=False), bool)
