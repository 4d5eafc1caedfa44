"""What columns hold: hard negatives, lists written as text, or what is not used and must be told."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from moembed.data.readers import text_problem

# Words that tell of a text without being one: negative_score, negative_ids, negative_1_rank, …
_ABOUT_A_TEXT = re.compile(
    r"(score|id|docid|pid|idx|index|rank|label|title|url|sim|similarity|prob|logit|weight|source|margin)s?"
    r"|similarities"
)
# Columns by which pairs are graded; training takes every row for a positive pair.
GRADES = frozenset(
    {
        *("score", "scores", "label", "labels", "similarity", "similarity_score", "relevance"),
        *("relevance_score", "grade", "rating", "gold", "gold_label", "is_duplicate", "target"),
    }
)
_WRONG_ANSWER = re.compile(r"(^|[_\-. ])(hard)?[_\-. ]?neg(s|atives?)?([_\-. ]|\d|$)", re.IGNORECASE)
_NOT_A_TEXT = {tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER}
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


@lru_cache(maxsize=1024)
def negative_column(column: str, prefix: str) -> Literal["texts", "texts or numbers"] | None:
    """Whether a column holds hard negatives, by its name.

    ``negative``, ``negatives``, ``negative_2``: texts. ``negative_passage``: texts, unless it holds numbers.
    ``negative_score``, ``negative_id``, ``negatively``: none.
    """
    if not column.startswith(prefix):
        return None
    rest = column.removeprefix(prefix)
    if re.fullmatch(r"s?[_\-. ]?\d*", rest):
        return "texts"
    if not re.match(r"s?([_\-. \d]|[A-Z])", rest):
        return None
    words = re.findall(r"[A-Z]?[a-z]+", rest)
    return None if any(_ABOUT_A_TEXT.fullmatch(word.lower()) for word in words) else "texts or numbers"


def like_negatives(column: str) -> bool:
    """Whether a column seems to hold hard negatives under another name: ``hard_negative``, ``Negative_1``."""
    words = re.findall(r"[A-Z]?[a-z]+", column)
    return bool(_WRONG_ANSWER.search(column)) and not any(_ABOUT_A_TEXT.fullmatch(w.lower()) for w in words)


def is_number(value: Any) -> bool:
    """Whether a cell, or every cell of a list, is a number; formats without types write numbers as text."""
    if isinstance(value, list):
        return bool(value) and all(map(is_number, value))
    if isinstance(value, str):
        return re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", value) is not None
    return isinstance(value, (int, float))


def written_list(text: str) -> list[str | None] | None:
    """The texts of a list that is written as text, as CSV holds it; None if ``text`` is no such list.

    JSON (``["a", "b"]``), Python (``['a', None]``) and NumPy (``['a' 'b']``) are read.

    Raises:
        ValueError: it begins and ends like such a list, but cannot be read.
    """
    bare = text.strip()
    if bare == "[]":
        return []
    if bare[:2] not in ('["', "['") or bare[-1:] != "]":
        return None
    try:
        values = json.loads(bare)
    except (ValueError, RecursionError):
        values = _literal_texts(bare)
    if not all(value is None or isinstance(value, str) for value in values):
        raise ValueError("looks like a list written as text, but holds more than texts")
    return list(values)


def as_list(value: Any) -> list[Any] | None:
    """``value`` if it is a list, the texts of a list written as text, None of anything else.

    Raises:
        ValueError: as ``written_list``.
    """
    if isinstance(value, str):
        return written_list(value)
    return value if isinstance(value, list) else None


def _literal_texts(text: str) -> list[Any]:
    """The literals of a Python or NumPy list; adjacent ones, which Python would join, stay apart."""
    values = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.STRING:
                values.append(ast.literal_eval(token.string))
            elif token.string in ("None", "nan"):
                values.append(None)
            elif token.type not in _NOT_A_TEXT and token.string not in ("[", "]", ","):
                raise ValueError
    except (ValueError, SyntaxError, tokenize.TokenError):
        raise ValueError(
            "looks like a list written as text, but cannot be read: write one text a cell"
        ) from None
    return values


class ColumnUse:
    """Which columns there are, which were used, and what in them looks wrong: told in ``notes``."""

    def __init__(self) -> None:
        self.seen: dict[str, None] = {}
        self.used: set[str] = set()
        self._cells: Counter[str] = Counter()
        self._quoted: Counter[str] = Counter()
        self._lists: Counter[str] = Counter()

    def see(self, columns: Iterable[str]) -> None:
        self.seen |= dict.fromkeys(columns)

    def use(self, column: str, value: Any, quotes: bool = False) -> None:
        """``value`` of ``column`` is used as a text; ``quotes``: its format knows no quoting."""
        self.used.add(column)
        if not isinstance(value, str):
            return
        if quotes:
            self._cells[column] += 1
            self._quoted[column] += bool(len(value) > 1 and _QUOTED.fullmatch(value))
        if value[:1] == "[" and not text_problem(value):
            self._lists[column] += _is_written_list(value)

    @property
    def unused(self) -> list[str]:
        return [column for column in self.seen if column not in self.used]

    def notes(self, remarks: Mapping[str, str]) -> list[str]:
        """A sentence for each thing to tell; ``remarks``: of a column, what can be done or what follows."""
        found = []
        if unused := self.unused:
            some = list(dict.fromkeys(remarks[column] for column in unused if column in remarks))
            names = ", ".join(column or "one without a name" for column in unused)
            found.append(f"columns not used: {names}" + (f" ({'; '.join(some)})" if some else ""))
        for column, quoted in self._quoted.items():
            if quoted and 2 * quoted >= self._cells[column]:
                found.append(
                    f"{quoted:,} of {self._cells[column]:,} fields of the column {column} stand in quotes, "
                    "which stay in the texts because TSV has no quoting; if they do not belong there, use CSV"
                )
        for column, lists in self._lists.items():
            if lists:
                found.append(
                    f"{lists:,} texts of the column {column} look like lists written as text and count as one"
                )
        return found


def _is_written_list(text: str) -> bool:
    try:
        return bool(written_list(text))
    except ValueError:
        return False


NO_COLUMN = "there is no column"


def missing_column(column: str, row: Sequence[str] | Mapping[str, Any]) -> str:
    only = f"{NO_COLUMN} {column!r}, only {', '.join(map(repr, row))}"
    names = list(row)
    if len(names) == 1 and (mark := next((m for m in (";", "\t", "|") if m in names[0]), None)):
        return f"{only}: the columns seem to stand apart by {mark!r}, and CSV has commas (.tsv has tabs)"
    return only
