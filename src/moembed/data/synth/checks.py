"""What of an answer can be used: its texts, and why some of them cannot."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from moembed.data.readers import text_problem
from moembed.data.synth.generators import Answer
from moembed.data.text_key import normalize

_SHINGLE = 5  # characters, as in `moembed.data.dedup`
_COPY = 0.8  # similarity (Jaccard, shingles) from which a text is a copy
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)  # which models that reason put in front


def texts_of(answer: Answer) -> list[Any] | str:
    """The values of the JSON array in an answer, or why there are none.

    A fence around it, a sentence in front of it and an object with one array are read too.
    """
    if answer.finish == "length":
        return "cut off"
    text = _THOUGHTS.sub("", answer.text).strip()
    if not text:
        return "empty answer"
    fenced = re.search(r"```(?:json)?\s*\n(.*?)```", text, re.DOTALL)
    for piece in (text, fenced[1] if fenced else "", text[text.find("[") : text.rfind("]") + 1]):
        try:
            value = json.loads(piece)
        except (ValueError, RecursionError):
            continue
        lists = [v for v in value.values() if isinstance(v, list)] if isinstance(value, dict) else [value]
        if len(lists) == 1 and isinstance(lists[0], list):
            return lists[0] or "empty answer"
    return "not JSON"


def problem(text: Any, originals: Sequence[str], earlier: Sequence[str], longest: int) -> str | None:
    """Why a text cannot be used: it is none, is too long, is a copy of one of ``originals``, or
    nearly one of the ``earlier`` texts of its answer."""
    if not isinstance(text, str):
        return "not a text"
    if found := text_problem(text):
        return "empty" if found == "is empty" else "not UTF-8"
    if len(text) > longest:
        return "too long"
    if any(is_copy(text, original) for original in originals):
        return "copy"
    return "repeated" if any(nearly_equal(text, other) for other in earlier) else None


def is_copy(text: str, original: str) -> bool:
    """Whether two texts are equal, or nearly, or ``text`` is at least half of the other, word for word."""
    one, other = normalize(text), normalize(original)
    return nearly_equal(one, other) or (one in other and 2 * len(one) >= len(other))


def nearly_equal(text: str, other: str) -> bool:
    """Whether two texts are equal, or their 5-character shingles have a Jaccard similarity of 0.8."""
    ours, theirs = _shingles(normalize(text)), _shingles(normalize(other))
    return len(ours & theirs) >= _COPY * len(ours | theirs)


def _shingles(text: str) -> set[str]:
    return {text[i : i + _SHINGLE] for i in range(max(1, len(text) - _SHINGLE + 1))}
