"""A condition as SQL over a column ``metadata`` of jsonb, for PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moembed.search.where import And, Compare, Not, Value, Where
from moembed.search.where_mask import FLAG, NUMBER, TEXT
from moembed.types import UserError


def as_sql(where: Where, kinds: Mapping[str, str]) -> tuple[str, list[Any]]:
    """The condition, true or false and never unknown, and the values of its places ``%s``.

    Args:
        kinds: what the columns hold, see ``where_mask``.

    Raises:
        UserError: a column of times, which stands in ``metadata`` as text.
    """
    if isinstance(where, Compare):
        return _compare(where, kinds[where.column])
    if isinstance(where, Not):
        inner, values = as_sql(where.item, kinds)
        return f"NOT ({inner})", values
    found = [as_sql(item, kinds) for item in where.items]
    joined = (" AND " if isinstance(where, And) else " OR ").join(f"({one})" for one, _ in found)
    return joined, [value for _, values in found for value in values]


def _compare(where: Compare, kind: str) -> tuple[str, list[Any]]:
    if where.op == "!=":
        inner, values = _compare(Compare(where.column, "=", where.value), kind)
        return f"NOT ({inner})", values
    if where.op == "in":
        assert isinstance(where.value, tuple)
        found = [_compare(Compare(where.column, "=", value), kind) for value in where.value]
        joined = " OR ".join(f"({one})" for one, _ in found)
        return joined, [value for _, values in found for value in values]
    value = where.value
    if value is None:
        return "metadata->>%s IS NULL", [where.column]
    assert not isinstance(value, tuple)
    return f"COALESCE((metadata->>%s){_cast(where, kind, value)}, false)", [where.column, value]


def _cast(where: Compare, kind: str, value: Value) -> str:
    if kind == TEXT:  # by code points, as the index compares
        return f' COLLATE "C" {where.op} %s'
    if kind == FLAG:
        return f"::boolean {where.op} %s"
    if kind == NUMBER:
        return f"::float8 {where.op} %s::float8" if isinstance(value, float) else f"::numeric {where.op} %s"
    raise UserError(f"where: column {where.column!r} holds {kind}, which PostgreSQL is not asked for here")
