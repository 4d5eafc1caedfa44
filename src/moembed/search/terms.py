"""The words of a text, for BM25."""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache, lru_cache
from itertools import groupby, pairwise

from moembed.data.scripts import HANGUL, UNSPACED

_UNSPACED = UNSPACED + HANGUL
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200c\u200d"))  # soft hyphen and joiners do not end a word
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_IDENTIFIER_JOINT = re.compile(r"_+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def tokenize(text: str) -> list[str]:
    """Lower-case terms of a text or of code, the same for every language: no stemming, no stop words.

    - A word is a run of letters, digits and combining marks: ``"Où est-il?"`` -> ``où est il``.
    - An identifier counts as a whole and by its parts: ``"parseHTTP_v2"`` -> ``parsehttp_v2 parse http v2``.
    - Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese, whose words are not set apart, become
      overlapping pairs of characters with their marks: ``"東京都"`` -> ``東京 京都``; a lone one stays alone.
    """
    terms: list[str] = []
    if text.isascii():  # the same, without the wide patterns: several times as fast
        for word in _ASCII_WORD.findall(text):
            terms += _word_terms(word)
        return terms
    text = unicodedata.normalize("NFKC", text.translate(_INVISIBLE))
    words, character = _patterns()
    for unspaced, word in words.findall(text):
        if unspaced:
            characters = character.findall(unspaced)
            terms += map("".join, pairwise(characters)) if len(characters) > 1 else characters
        else:
            terms += _word_terms(word)
    return terms


@lru_cache(maxsize=1 << 16)
def _word_terms(word: str) -> tuple[str, ...]:
    word = word.strip("_")
    parts = _IDENTIFIER_JOINT.split(word)
    terms = [word, *parts] if len(parts) > 1 else parts
    return tuple(term.casefold() for term in terms if term)


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A run of unspaced characters or else a word; one unspaced character. Built on first use."""
    marks = _combining_marks()
    character = rf"(?=\w)[{_UNSPACED}][{marks}]*"
    word = rf"(?:[^\W{_UNSPACED}]+[{marks}]*)+"
    return re.compile(f"((?:{character})+)|({word})"), re.compile(character)


def _combining_marks() -> str:
    """Ranges of a character class: ``\\w`` leaves the marks out, and Hindi would fall to pieces."""
    codes = [code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("M")]
    runs = [list(run) for _, run in groupby(enumerate(codes), lambda item: item[1] - item[0])]
    return "".join(f"{chr(run[0][1])}-{chr(run[-1][1])}" for run in runs)
