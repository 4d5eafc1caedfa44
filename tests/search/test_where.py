"""Conditions mean what plain Python says they mean, whatever types the columns have; mistakes are placed."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from operator import eq, ge, gt, le, lt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moembed.search.where import And, Compare, Not, Or, Where, read_where, to_json
from moembed.search.where_mask import column_kinds, mask, require_columns
from moembed.types import UserError

ROWS: list[dict[str, Any]] = [
    {"lang": "de", "year": 2009, "kind": "a", "archived": True, "price": 1.5},
    {"lang": "de", "year": 2010, "kind": "c", "archived": False, "price": math.nan},
    {"lang": "de", "year": 2001, "kind": "b", "archived": None, "price": None},
    {"lang": "en", "year": 2**62, "kind": "it's", "archived": False, "price": -3.0},
    {"lang": None, "year": None, "kind": None, "archived": None, "price": 2.0},
]
TABLE = pa.Table.from_pylist(ROWS)


def found(where: Any, table: pa.Table = TABLE) -> list[int]:
    condition = read_where(where)
    require_columns(condition, column_kinds([table.schema]))
    names = table.column_names
    there = mask(condition, lambda name: table[name] if name in names else None, table.num_rows)
    return np.flatnonzero(there).tolist()


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ('lang = "de" and (year >= 2010 or kind in ("a", "b")) and not archived = true', [1, 2]),
        ("lang = 'de'", [0, 1, 2]),
        ("lang == 'de' AND year<2010", [0, 2]),
        ("lang != 'de'", [3, 4]),
        ("not lang = 'de'", [3, 4]),
        ("lang <> null", [0, 1, 2, 3]),
        ("lang = null", [4]),
        ("archived = null or archived = TRUE", [0, 2, 4]),
        ("not not archived = true", [0]),
        ("kind in ('a', null)", [0, 4]),
        ("kind not in ('a', 'b')", [1, 3, 4]),
        ("kind = 'it''s' or kind = 'it\\'s'", [3]),
        ("`kind` > 'b'", [1, 3]),
        ("year > 2009.5", [1, 3]),
        ("year >= 2009.0 and year < 1e10", [0, 1]),
        ("year = 2009.5", []),
        (f"year = {2**62}", [3]),
        (f"year = {2**62 + 1}", []),
        (f"year < {10**30}", [0, 1, 2, 3]),
        (f"year > {10**30}", []),
        (f"year >= -{10**30}", [0, 1, 2, 3]),
        (f"year != {10**30}", [0, 1, 2, 3, 4]),
        ("price < 1.5", [3]),
        ({"column": "price", "op": "<=", "value": 10**400}, [0, 3, 4]),
        ({"column": "price", "op": ">", "value": 10**400}, []),
        ("price = 2", [4]),
        ("price != 2", [0, 1, 2, 3]),
        ("price = -3", [3]),
        ("lang='de' or lang='en' and year=1", [0, 1, 2]),
        (
            '{"and": [{"column": "lang", "op": "=", "value": "de"},'
            ' {"column": "year", "op": "<", "value": 2005}]}',
            [2],
        ),
        ({"not": {"column": "kind", "op": "in", "value": ["a", "b", "c"]}}, [3, 4]),
        ({"or": [{"column": "kind", "op": "=", "value": "a"}]}, [0]),
        ("kind in (" + ", ".join(f"'{one}'" for one in "abdefghijklmn") + ", null)", [0, 2, 4]),
    ],
)  # fmt: skip
def test_what_conditions_find(where, rows):
    assert found(where) == rows


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.int64(), pa.float32(), pa.float64()])
def test_numbers_without_missing_values_are_compared_as_those_with_some(kind):
    """The first are compared by numpy, the others by pyarrow."""
    extreme = [2.5, math.nan, -math.inf] if pa.types.is_floating(kind) else [int(np.iinfo(str(kind)).max)]
    values = [0, 1, 7, 100, *extreme]
    full, holed = pa.array(values, kind), pa.array([*values, None], kind)
    for op in ("=", "!=", "<", "<=", ">", ">="):
        for value in (-1, 0, 1, 2.5, 7, 1e30, 2**53 + 1, 2**64 - 1, 2**64, -(2**63)):
            where = Compare("n", op, value)
            whole = mask(where, {"n": full}.get, len(full))
            assert whole.dtype == bool
            np.testing.assert_array_equal(whole, mask(where, {"n": holed}.get, len(holed))[:-1])


def test_times_are_compared_as_times():
    days = [datetime(2024, 1, 31), datetime(2024, 2, 1, 12), None]
    zoned = [day and day.replace(tzinfo=timezone.utc) for day in days]
    table = pa.table({"day": days, "zoned": zoned, "date": [day and day.date() for day in days]})
    assert found('day < "2024-02-01"', table) == [0]
    assert found('date >= "2024-02-01"', table) == [1]
    assert found('zoned = "2024-02-01T13:00:00+01:00" or zoned = "2024-01-31"', table) == [0, 1]
    assert found('zoned in ("2024-02-01T12:00:00Z")', table) == [1]
    for where, complaint in [
        ('day = "soon"', "'soon' is none: write \"2024-01-31\""),
        ('day = "2024-01-31T00:00:00Z"', "times without a zone"),
        ("day = 2024", "holds dates or times: compare it with one in quotes"),
    ]:
        with pytest.raises(UserError, match=complaint):
            found(where, table)


values = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.5, -1.0, 2**53 + 1, -(10**30)])
    | st.text("ab'\"\\", max_size=3)
)
names = st.sampled_from(["n", "x", "s", "b"])
comparisons_ = st.builds(
    Compare, names, st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), values
) | st.builds(Compare, names, st.just("in"), st.lists(values, min_size=1).map(tuple))
conditions = st.recursive(
    comparisons_,
    lambda inner: st.builds(Not, inner)
    | st.builds(And, st.lists(inner, min_size=2, max_size=3).map(tuple))
    | st.builds(Or, st.lists(inner, min_size=2, max_size=3).map(tuple)),
    max_leaves=6,
)  # fmt: skip
TYPED = {"n": [1, -2, None, 3, 0, 2**53], "x": [0.5, None, math.nan, 2.0**53, -0.0, -math.inf],
         "s": ["a", "b'", None, "", "ab", "日"], "b": [True, False, None, True, False, None]}  # fmt: skip


def plainly(where: Where, row: dict[str, Any]) -> bool:
    """The meaning of a condition for one row."""
    if isinstance(where, Not):
        return not plainly(where.item, row)
    if isinstance(where, (And, Or)):
        return (all if isinstance(where, And) else any)(plainly(item, row) for item in where.items)
    value, against = row[where.column], where.value
    if where.op == "!=":
        return not plainly(Compare(where.column, "=", against), row)
    if where.op == "in":
        return any(plainly(Compare(where.column, "=", one), row) for one in against)
    if value is None or against is None:
        return where.op == "=" and value is against
    return {"=": eq, "<": lt, "<=": le, ">": gt, ">=": ge}[where.op](value, against)


@given(conditions)
def test_masks_agree_with_plain_python(where):
    table = pa.table(TYPED)
    try:
        require_columns(where, column_kinds([table.schema]))
    except UserError:
        return
    expected = [plainly(where, row) for row in table.to_pylist()]
    assert mask(where, lambda name: table[name], table.num_rows).tolist() == expected
    assert read_where(to_json(where)) == read_where(json.dumps(to_json(where))) == where


@pytest.mark.parametrize("name", TYPED)
def test_a_long_list_of_values_is_all_of_its_comparisons(name):
    table = pa.table(TYPED)
    listed = {"s": [*map(str, range(3000)), "ab", "日"], "b": [False]}.get(name, [*range(1, 3000), -0.0])
    for more in ([], [None]):
        many = mask(Compare(name, "in", (*listed, *more)), lambda name: table[name], 6)
        one_by_one = Or(tuple(Compare(name, "=", value) for value in (*listed, *more)))
        assert many.tolist() == mask(one_by_one, lambda name: table[name], 6).tolist()
        assert many.any()


def as_text(where: Where) -> str:
    if isinstance(where, Not):
        return f"not ({as_text(where.item)})"
    if isinstance(where, (And, Or)):
        word = " and " if isinstance(where, And) else " or "
        return word.join(f"({as_text(item)})" for item in where.items)
    if where.op == "in":
        return f"`{where.column}` in ({', '.join(map(written, where.value))})"
    return f"{where.column} {where.op} {written(where.value)}"


def written(value: Any) -> str:
    return (
        json.dumps(value)
        if not isinstance(value, str)
        else "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
    )


@given(conditions)
def test_a_written_condition_reads_back(where):
    assert read_where(as_text(where)) == where


@given(st.text(alphabet="ab =<>(),'\"`1.-andorinot", max_size=30))
def test_any_text_is_a_condition_or_a_complaint(text):
    try:
        condition = read_where(text)
    except UserError:
        return  # anything else would fail the test
    assert read_where(as_text(condition)) == condition


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("", r"where, character 1: the name of a column is expected, and the end stands there in ''"),
        ("lang = de", r"character 8: a value \(a text stands in quotes: \"de\"\) is expected, and 'de'"),
        ("lang = 'de", r"character 8: a text that does not end"),
        ("lang 'de'", r"character 6: =, !=, <, <=, >, >= or in is expected"),
        ("lang = 'de' year = 1", r"character 13: and, or, or the end is expected, and 'year'"),
        ("(lang = 'de'", r"character 13: and, or, or \) is expected, and the end"),
        ("year in (1 2)", r"character 12: , or \) is expected"),
        ("year in ()", r"character 10: a value is expected"),
        ("year not = 1", r"character 10: in is expected"),
        ("year % 2", r"character 6: '%' stands there"),
        ("year = 1e999", r"character 8: the number 1e999 is too large"),
        ("(" * 200, "more than 100 conditions"),
        ("not " * 5000 + "a = 1", "more than 100 conditions"),
        ("yaer = 1", r"no column 'yaer' \(did you mean 'year'\?\); there are lang, year"),
        ("lang = 1", "column 'lang' holds text: compare it with a text in quotes"),
        ("year = '2010'", "column 'year' holds numbers: compare it with a number, not with = '2010'"),
        ("year = true", "column 'year' holds numbers"),
        ("archived > true", "column 'archived' holds true or false"),
        ("archived = 1", "column 'archived' holds true or false"),
        ("year < null", "nothing is < null"),
        ("{", "not valid JSON"),
        ({"and": []}, r"where\.and must be a list of at least one"),
        ({"or": [{"column": "year"}]}, r"where\.or\.0 must be .* it has 'column'"),
        ({"column": 1, "op": "=", "value": 1}, r"where\.column must be the name"),
        ({"column": "year", "op": "~", "value": 1}, r"where\.op must be one of =, !="),
        ({"column": "year", "op": "in", "value": 1}, r"where\.value must be a list"),
        ({"column": "year", "op": "=", "value": [1]}, r"where\.value must be a text, a number"),
        ({"column": "year", "op": "=", "value": math.nan}, r"where\.value must be a finite number"),
        ({"not": 3}, r"where\.not must be .*, not a int"),
        ({"column": "lang", "op": "=", "value": "\ud800"}, r"the text '\\ud800', given for 'lang', is no"),
        ("lang in ('de', '\udcff')", "is not UTF-8"),
        (Compare("price", "<", math.inf), "'price' cannot be compared with inf"),
        ("lang = 'de' or " * 10_000, r"stands there in \"lang = 'de'.{150,250}…$"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_place(where, complaint):
    with pytest.raises(UserError, match=complaint):
        found(where)


def test_columns_of_several_kinds_are_refused_and_empty_ones_are_missing():
    parts = [pa.table({"a": [1], "b": [None], "c": [[1]]}), pa.table({"a": ["x"], "b": [2]})]
    kinds = column_kinds(table.schema for table in parts)
    assert kinds == {"a": "mixed", "b": "numbers", "c": "mixed"}
    for name in "ac":
        with pytest.raises(
            UserError, match=rf"column '{name}' holds lists, objects or values of several kinds"
        ):
            require_columns(read_where(f"{name} = 1"), kinds)
    assert found("b = 2 or b = null", parts[0]) == [0]
    assert mask(read_where("d = null and not d = 1"), lambda name: None, 2).all()
