"""A condition as SQL over a column ``metadata`` of JSON, in the words of a database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from moembed.search.where import And, Compare, Not, Value, Where
from moembed.search.where_mask import FLAG, NUMBER, TEXT
from moembed.types import UserError

Sql = tuple[str, list[Any]]
"""An expression, and the values of its places ``%s``."""

_EXACT = 2**53  # whole numbers up to here are the same as float64


class Dialect(Protocol):
    """How a database asks for a key of ``metadata``."""

    name: str

    def is_null(self, column: str) -> Sql:
        """Whether the key is missing or null."""

    def compare(self, column: str, op: str, value: Value, kind: str) -> Sql:
        """``kind`` is TEXT, NUMBER or FLAG; unknown, not false, where the key is missing or null."""


class Postgres:
    """jsonb of PostgreSQL; values stand in the places of a prepared statement."""

    name = "PostgreSQL"

    def is_null(self, column: str) -> Sql:
        return "metadata->>%s IS NULL", [column]

    def compare(self, column: str, op: str, value: Value, kind: str) -> Sql:
        if kind == TEXT:  # by code points, as the index compares
            how = f' COLLATE "C" {op} %s'
        elif kind == FLAG:
            how = f"::boolean {op} %s"
        else:
            how = f"::float8 {op} %s::float8" if isinstance(value, float) else f"::numeric {op} %s"
        return f"(metadata->>%s){how}", [column, value]


class Lance:
    """The JSON of Lance; it takes no places, so values stand in the text, between quotes."""

    name = "LanceDB"

    def is_null(self, column: str) -> Sql:
        return f"json_get_string(metadata, {_quoted(column)}) IS NULL", []

    def compare(self, column: str, op: str, value: Value, kind: str) -> Sql:
        if kind == TEXT:
            get, literal = "string", _quoted(str(value))
        elif kind == FLAG:
            get, literal = "bool", str(value).lower()
        else:
            get = "int" if isinstance(value, int) and abs(value) > _EXACT else "float"
            literal = repr(value)
        return f"json_get_{get}(metadata, {_quoted(column)}) {op} {literal}", []


def as_sql(where: Where, kinds: Mapping[str, str], dialect: Dialect) -> Sql:
    """The condition, true or false and never unknown.

    Args:
        kinds: what the columns hold, see ``where_mask``.

    Raises:
        UserError: a column of times, which stands in ``metadata`` as text.
    """
    if isinstance(where, Compare):
        return _compare(where, kinds[where.column], dialect)
    if isinstance(where, Not):
        inner, values = as_sql(where.item, kinds, dialect)
        return f"NOT ({inner})", values
    return _joined(
        " AND " if isinstance(where, And) else " OR ", [as_sql(item, kinds, dialect) for item in where.items]
    )


def _compare(where: Compare, kind: str, dialect: Dialect) -> Sql:
    if where.op == "!=":
        inner, values = _compare(Compare(where.column, "=", where.value), kind, dialect)
        return f"NOT ({inner})", values
    if where.op == "in":
        assert isinstance(where.value, tuple)
        some = [_compare(Compare(where.column, "=", value), kind, dialect) for value in where.value]
        return _joined(" OR ", some)
    if where.value is None:
        return dialect.is_null(where.column)
    assert not isinstance(where.value, tuple)
    if kind not in (TEXT, NUMBER, FLAG):
        raise UserError(
            f"where: column {where.column!r} holds {kind}, which {dialect.name} is not asked for here"
        )
    inner, values = dialect.compare(where.column, where.op, where.value, kind)
    return f"COALESCE({inner}, false)", values


def _joined(word: str, found: list[Sql]) -> Sql:
    return word.join(f"({one})" for one, _ in found), [value for _, values in found for value in values]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
