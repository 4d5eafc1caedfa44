"""A condition as a filter of Qdrant: of the embedded engine, or of its client, which has other names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moembed.search.where import And, Compare, Not, Value, Where

TEXT, WHOLE, NUMBER, FLAG = "keyword", "integer", "float", "bool"  # kinds of a field
EXACT = 2**53  # whole numbers up to it are what they were as float64
_MOST = 1000  # values of `in` that a filter spells out


def as_filter(where: Where, fields: Mapping[str, tuple[str, str]], qdrant: Any) -> Any | None:
    """A condition in the terms of Qdrant; None where Qdrant would understand it in another way.

    Args:
        fields: name and kind of the field that holds a column; a missing value is null or not there.
        qdrant: the module ``qdrant_edge``, or ``ClientDialect``.
    """
    if isinstance(where, Compare):
        if where.op == "!=":
            return as_filter(Not(Compare(where.column, "=", where.value)), fields, qdrant)
        return _compare(where, fields, qdrant)
    if isinstance(where, Not):
        found = as_filter(where.item, fields, qdrant)
        return None if found is None else qdrant.Filter(must_not=[found])
    items = [as_filter(item, fields, qdrant) for item in where.items]
    if any(item is None for item in items):
        return None
    return qdrant.Filter(must=items) if isinstance(where, And) else qdrant.Filter(should=items)


def _compare(where: Compare, fields: Mapping[str, tuple[str, str]], qdrant: Any) -> Any | None:
    if where.column not in fields:
        return None
    name, kind = fields[where.column]
    if where.op in ("=", "in"):
        values = where.value if isinstance(where.value, tuple) else (where.value,)
        return _among(name, kind, values, qdrant)
    sides = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
    if kind not in (WHOLE, NUMBER) or not _is_exact(where.value):
        return None
    bound = qdrant.RangeFloat(**{sides[where.op]: float(where.value)})  # type: ignore[arg-type]
    return qdrant.Filter(must=[qdrant.FieldCondition(name, range=bound)])


def _among(name: str, kind: str, values: Sequence[Value], qdrant: Any) -> Any | None:
    plain = list(dict.fromkeys(value for value in values if value is not None))
    found = [qdrant.IsEmptyCondition(name)] if None in values else []
    if len(plain) > _MOST or not all(isinstance(value, str) == (kind == TEXT) for value in plain):
        return None
    if kind in (WHOLE, NUMBER):
        if not all(_is_exact(value) for value in plain):
            return None
        numbers = [float(value) for value in plain]
        found += [qdrant.FieldCondition(name, range=qdrant.RangeFloat(gte=one, lte=one)) for one in numbers]
    elif kind == FLAG:
        found += [qdrant.FieldCondition(name, match=qdrant.MatchValue(value)) for value in plain]
    elif plain:
        found.append(qdrant.FieldCondition(name, match=qdrant.MatchAny(plain)))
    return qdrant.Filter(should=found)


def _is_exact(value: Any) -> bool:
    """Whether Qdrant, which compares float64, compares this number itself."""
    return isinstance(value, (int, float)) and math.isfinite(value) and abs(value) <= EXACT


class ClientDialect:
    """What ``qdrant_client`` calls the parts of a filter."""

    @staticmethod
    def Filter(**parts: Any) -> Any:
        from qdrant_client import models

        return models.Filter(**parts)

    @staticmethod
    def FieldCondition(name: str, **parts: Any) -> Any:
        from qdrant_client import models

        return models.FieldCondition(key=name, **parts)

    @staticmethod
    def RangeFloat(**sides: float) -> Any:
        from qdrant_client import models

        return models.Range(**sides)

    @staticmethod
    def MatchValue(value: Any) -> Any:
        from qdrant_client import models

        return models.MatchValue(value=value)

    @staticmethod
    def MatchAny(values: list[str]) -> Any:
        from qdrant_client import models

        return models.MatchAny(any=values)

    @staticmethod
    def IsEmptyCondition(name: str) -> Any:
        from qdrant_client import models

        return models.IsEmptyCondition(is_empty=models.PayloadField(key=name))
