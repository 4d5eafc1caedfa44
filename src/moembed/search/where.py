"""Conditions on the columns of an index: ``lang = "de" and (year >= 2010 or kind in ("a", "b"))``.

```
condition   = all-of ("or" all-of)*                 all-of = one ("and" one)*
one         = "not" one | "(" condition ")" | comparison
comparison  = column ("=" | "!=" | "<" | "<=" | ">" | ">=") value | column ["not"] "in" "(" value, … ")"
column      = a name of letters, digits, "_" and "." | `any name` between backquotes
value       = "text" | 'text' | number | true | false | null
```

A quote inside a text is written twice or after a backslash. Words of the language are read in any case. Every
condition is true or false, never unknown: a comparison with a missing value is false (but ``= null`` is true
of it), ``a != b`` is ``not a = b``, and ``not`` turns false into true. The same as JSON: ``{"and": […]}``,
``{"or": […]}``, ``{"not": …}`` and ``{"column": "year", "op": ">=", "value": 2010}``; of ``in``, the value is
a list.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

from moembed.types import UserError

Value = str | int | float | bool | None
OPERATORS = ("=", "!=", "<", "<=", ">", ">=", "in")
_DEEPEST = 100  # conditions inside conditions
_SHOWN = 200  # characters of a condition that a complaint repeats
_WORDS = ("and", "or", "not", "in", "true", "false", "null")
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
      |(?P<text>"(?:[^"\\]|\\.|"")*"|'(?:[^'\\]|\\.|'')*')
      |(?P<quoted>`[^`]+`)
      |(?P<word>[^\W\d][\w.]*)
      |(?P<sign><=|>=|!=|<>|==|[=<>(),])
      |(?P<end>\Z)
      |(?P<bad>.))""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Compare:
    """A column against a value; of ``in``, against a tuple of values."""

    column: str
    op: str
    value: Value | tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class And:
    items: tuple[Where, ...]


@dataclass(frozen=True, slots=True)
class Or:
    items: tuple[Where, ...]


@dataclass(frozen=True, slots=True)
class Not:
    item: Where


Where = Compare | And | Or | Not


def read_where(where: str | Mapping[str, Any] | Where) -> Where:
    """A condition from its text, its JSON form, or JSON text.

    Raises:
        UserError: it is none; the sentence names the place.
    """
    if isinstance(where, (Compare, And, Or, Not)):
        return where
    if isinstance(where, str):
        if not where.lstrip().startswith("{"):
            return _from_text(where)
        try:
            where = json.loads(where)
        except (ValueError, RecursionError) as error:
            raise UserError(f"where is not valid JSON ({error})") from None
    return _from_json(where, "where", 0)


@lru_cache(256)  # the same condition is often asked with many queries
def _from_text(text: str) -> Where:
    return _Parser(text).whole()


def to_json(where: Where) -> dict[str, Any]:
    """The JSON form, which ``read_where`` reads back as an equal condition."""
    if isinstance(where, Compare):
        value = list(where.value) if isinstance(where.value, tuple) else where.value
        return {"column": where.column, "op": where.op, "value": value}
    if isinstance(where, Not):
        return {"not": to_json(where.item)}
    return {"and" if isinstance(where, And) else "or": [to_json(item) for item in where.items]}


def comparisons(where: Where) -> Iterator[Compare]:
    """All comparisons in a condition."""
    if isinstance(where, Compare):
        yield where
    elif isinstance(where, Not):
        yield from comparisons(where.item)
    else:
        for item in where.items:
            yield from comparisons(item)


class _Parser:
    """Reads a text from left to right; ``kind`` and ``word`` are the token that comes next."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = self.start = 0
        self.kind = self.word = ""
        self.next()

    def next(self) -> str:
        """Go on; the token before."""
        before = self.word
        found = _TOKEN.match(self.text, self.at)
        assert found is not None
        assert found.lastgroup is not None
        self.kind, self.word = found.lastgroup, found[found.lastgroup]
        self.start, self.at = found.start(found.lastgroup), found.end()
        if self.kind == "word" and self.word.lower() in _WORDS:
            self.kind, self.word = "keyword", self.word.lower()
        if self.kind == "bad":
            open_quote = "a text that does not end" if self.word in "\"'`" else None
            self.fail(f"{open_quote or repr(self.word)} stands there")
        return before

    def fail(self, what: str) -> NoReturn:
        raise UserError(f"where, character {self.start + 1}: {what} in {_short(self.text)}")

    def expected(self, what: str) -> NoReturn:
        self.fail(
            f"{what} is expected, and {'the end' if self.kind == 'end' else repr(self.word)} stands there"
        )

    def takes(self, *words: str) -> bool:
        """Whether one of these comes next; then go on."""
        there = self.kind in ("keyword", "sign") and self.word in words
        if there:
            self.next()
        return there

    def whole(self) -> Where:
        found = self.any_of(0)
        if self.kind != "end":
            self.expected("and, or, or the end")
        return found

    def any_of(self, depth: int) -> Where:
        items = [self.all_of(depth)]
        while self.takes("or"):
            items.append(self.all_of(depth))
        return items[0] if len(items) == 1 else Or(tuple(items))

    def all_of(self, depth: int) -> Where:
        items = [self.one(depth)]
        while self.takes("and"):
            items.append(self.one(depth))
        return items[0] if len(items) == 1 else And(tuple(items))

    def one(self, depth: int) -> Where:
        if depth > _DEEPEST:
            self.fail(f"more than {_DEEPEST} conditions stand inside one another")
        if self.takes("not"):
            return Not(self.one(depth + 1))
        if self.takes("("):
            found = self.any_of(depth + 1)
            if not self.takes(")"):
                self.expected("and, or, or )")
            return found
        return self.comparison()

    def comparison(self) -> Where:
        if self.kind not in ("word", "quoted"):
            self.expected("the name of a column")
        column = self.next().strip("`")
        negated = self.takes("not")
        if self.takes("in"):
            found = Compare(column, "in", self.values())
            return Not(found) if negated else found
        if negated or self.kind != "sign" or self.word in ("(", ")", ","):
            self.expected("in" if negated else "=, !=, <, <=, >, >= or in")
        sign = self.next()
        return Compare(column, {"==": "=", "<>": "!="}.get(sign, sign), self.value())

    def values(self) -> tuple[Value, ...]:
        if not self.takes("("):
            self.expected("(")
        found = [self.value()]
        while self.takes(","):
            found.append(self.value())
        if not self.takes(")"):
            self.expected(", or )")
        return tuple(found)

    def value(self) -> Value:
        kind, word = self.kind, self.word
        if kind == "word":
            self.expected(f'a value (a text stands in quotes: "{word}")')
        if kind not in ("text", "number", "keyword") or word in ("and", "or", "not", "in"):
            self.expected("a value")
        if kind == "number":
            number = int(word) if word.lstrip("+-").isdigit() and len(word) < 40 else float(word)
            if isinstance(number, float) and math.isinf(number):
                self.fail(f"the number {word[:40]} is too large")
            self.next()
            return number
        self.next()
        if kind == "keyword":
            return {"true": True, "false": False, "null": None}[word]
        quote = word[0]
        return re.sub(
            rf"\\(.)|{quote}({quote})", lambda found: found[1] or found[2], word[1:-1], flags=re.DOTALL
        )


def _short(text: str) -> str:
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}…"


def _from_json(value: Any, at: str, depth: int) -> Where:
    """``at``: where this part of it stands, for a complaint."""
    form = '{"and": […]}, {"or": […]}, {"not": …} or {"column": …, "op": …, "value": …}'
    if depth > _DEEPEST:
        raise UserError(f"{at}: more than {_DEEPEST} conditions stand inside one another")
    if not isinstance(value, Mapping):
        raise UserError(f"{at} must be {form}, not a {type(value).__name__}")
    if value.keys() == {"not"}:
        return Not(_from_json(value["not"], f"{at}.not", depth + 1))
    for word, kind in (("and", And), ("or", Or)):
        if value.keys() == {word}:
            items = value[word]
            if not isinstance(items, (list, tuple)) or not items:
                raise UserError(f"{at}.{word} must be a list of at least one condition")
            read = [_from_json(item, f"{at}.{word}.{place}", depth + 1) for place, item in enumerate(items)]
            return read[0] if len(read) == 1 else kind(tuple(read))
    if value.keys() != {"column", "op", "value"}:
        raise UserError(f"{at} must be {form}; it has {', '.join(map(repr, value)) or 'no keys'}")
    column, op, against = value["column"], value["op"], value["value"]
    if not isinstance(column, str):
        raise UserError(f"{at}.column must be the name of a column, not a {type(column).__name__}")
    if op not in OPERATORS:
        raise UserError(f"{at}.op must be one of {', '.join(OPERATORS)}, not {op!r}")
    if op == "in":
        if not isinstance(against, (list, tuple)) or not against:
            raise UserError(f"{at}.value must be a list of at least one value, because op is in")
        return Compare(column, op, tuple(_plain(item, f"{at}.value") for item in against))
    return Compare(column, op, _plain(against, f"{at}.value"))


def _plain(value: Any, at: str) -> Value:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{at} must be a finite number")
    if value is not None and not isinstance(value, (str, int, float, bool)):
        raise UserError(f"{at} must be a text, a number, true, false or null, not a {type(value).__name__}")
    return value
