"""Message catalogues of programs (``.mo``): an English message and its translation.

Read by the standard library's own `gettext`. Of a message with plural forms the pair is the singular and the
form that the catalogue's own rule has for one: the reader does not keep the English plural. ``msgfmt`` leaves
translations that are marked fuzzy out of a catalogue, so none is read.
"""

from __future__ import annotations

import gettext
import re
from collections.abc import Iterator
from pathlib import Path

from moembed.data.collect.pair import CollectedPair, Place, language_of

SOURCE = "mo"
_CONTEXT = "\x04"  # stands between the context of a message and the message
# What a program puts in later: %s, %-5d, %1$s, %(name)s, {0}, {name!r:>4}.
_PLACEHOLDER = re.compile(
    r"%(?:\(\w+\)|\d+\$)?[-+#0]*(?:\d+|\*)?(?:\.(?:\d+|\*))?(?:hh|h|ll|l|j|z|t|L)?[diouxXeEfFgGcrsap]"
    r"|\{\w*(?:![rsa])?(?::[^{}]*)?\}"
)
_ORDER = re.compile(r"\d+\$")
_MARKUP = re.compile(r"</?[A-Za-z][^<>]*>")
# The letter of a menu's shortcut: _File, &File; a translation may have it inside a word, or as (_F) behind.
_SHORTCUT = re.compile(r"(?<![\w&])([_&])(?=\w)")


def collect(place: Place, sites: tuple[Path, ...] = ()) -> Iterator[CollectedPair]:
    """The pairs of every catalogue below ``usr/share``, ``usr/local/share`` and the Python packages."""
    patterns = ("usr/share/**/LC_MESSAGES/*.mo", "usr/local/share/**/LC_MESSAGES/*.mo")
    files = [*place.below(*patterns), *(path for site in sites for path in site.rglob("LC_MESSAGES/*.mo"))]
    for path in files:
        language = language_of(path.parent.parent.name)
        if language is None:
            place.skipped["catalogues of no language"] += 1
        elif language != "en":
            yield from _of_file(path, language, place)


def _of_file(path: Path, language: str, place: Place) -> Iterator[CollectedPair]:
    try:
        with path.open("rb") as file:
            translations = gettext.GNUTranslations(file)
            one = translations.plural(1)  # type: ignore[attr-defined]
    except (
        OSError,
        ValueError,
        SyntaxError,
        LookupError,
        AttributeError,
    ):  # of damaged ones
        place.skipped["unreadable catalogues"] += 1
        return
    package, licence = place.licences.of_file(path)
    for key, value in translations._catalog.items():  # type: ignore[attr-defined]
        message, form = key if isinstance(key, tuple) else (key, one)
        if form != one or not message:  # the empty message holds the header
            continue
        query, document = message.rpartition(_CONTEXT)[2], value
        if not document:
            place.skipped["not translated"] += 1
        elif placeholders(query) != placeholders(document):
            place.skipped["placeholders that differ"] += 1
        else:
            sign = shortcut_of(query)
            texts = clean(query, sign), clean(document, sign)
            yield CollectedPair(*texts, language, "en", SOURCE, package, licence)


def placeholders(text: str) -> list[str]:
    """Those of a message, sorted, without their numbers: a translation may use them in another order."""
    return sorted(_ORDER.sub("", found) for found in _PLACEHOLDER.findall(text))


def clean(message: str, shortcut: str = "") -> str:
    """The message as a reader sees it: … for a placeholder, no markup, no shortcut, one line.

    Args:
        shortcut: the sign of shortcuts that the English message has, see ``shortcut_of``.

    >>> clean("_Open <b>%s</b>\\nin  a {name} window", "_")
    'Open … in a … window'
    """
    text = message
    if shortcut:
        sign = re.escape(shortcut)
        text = re.sub(rf"\s?\({sign}\w\)|{sign}(?=\w)", "", message, count=1)
    return " ".join(_MARKUP.sub("", _PLACEHOLDER.sub("…", text)).split())


def shortcut_of(message: str) -> str:
    """The sign that marks the letter of a shortcut, ``_`` or ``&``; empty where the message has none."""
    found = _SHORTCUT.findall(message)
    return found[0] if len(found) == 1 else ""
