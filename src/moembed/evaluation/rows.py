"""Languages and numbers of the texts that tasks are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from moembed.data.records import Record
from moembed.data.text_key import text_key


def language_of(name: str) -> str:
    """The two letters that the name of a task ends in (``xquad-de``), or "" if it does not."""
    found = re.search(r"-([a-z]{2})$", name)
    return found[1] if found else ""


def languages(name: str, rows: Sequence[Record]) -> list[str]:
    """The language of every row of the task ``name``."""
    return [row.language(language_of(name)) for row in rows]


def numbered(texts: Iterable[str]) -> dict[str, int]:
    """Every distinct text and its number, in the order of first appearance."""
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}


class EqualTexts:
    """Numbers for texts, the same for equal ones (``text_key``); ``texts`` holds the first of each number."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[bytes, int] = {}

    def number(self, text: str) -> int:
        number = self._numbers.setdefault(text_key(text), len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number
