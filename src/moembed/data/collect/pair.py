"""A collected pair, and what every collector is told and tells."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from moembed.data.collect.licences import Licences

_LANGUAGE = re.compile(r"[a-z]{2,3}")


@dataclass(frozen=True, slots=True)
class CollectedPair:
    """A row of the file: who wrote the texts, under which licence, and in which languages they are.

    Attributes:
        language: of the document; ``query_language`` that of the query. Codes of ISO 639 such as ``de``,
            without region or script.
        package: of Debian or Python, that the texts are from; empty where no package owns the file.
        licence: as the package names it; ``unknown`` where it does not in a form that programs read.
    """

    query: str
    document: str
    language: str
    query_language: str
    source: str
    package: str
    licence: str


@dataclass
class Place:
    """Where a collector looks, and what it could not use.

    Attributes:
        root: the root of the machine, or any folder that is laid out like one.
        skipped: how often something was left out, by reason.
    """

    root: Path
    licences: Licences
    skipped: Counter[str] = field(default_factory=Counter)

    def below(self, *patterns: str) -> Iterator[Path]:
        """Files below the root that match any of the glob patterns, sorted, each once."""
        yield from sorted({path for pattern in patterns for path in self.root.glob(pattern)})


def language_of(locale: str) -> str | None:
    """The language of a locale such as ``pt_BR``, ``sr@latin`` or ``de_DE.UTF-8``; None: it names none.

    >>> language_of("pt_BR"), language_of("sr@latin"), language_of("zh-TW"), language_of("C")
    ('pt', 'sr', 'zh', None)
    """
    code = re.split(r"[_.@-]", locale, maxsplit=1)[0]
    return code if _LANGUAGE.fullmatch(code) else None
