"""The languages of texts, found by py3langid, for models that choose experts by the language of a text.

The choice of the library is in docs/decisions/0006-finding-languages.md. Its model lies in the package, and
nothing is downloaded. A text of a few words is often taken for a language that is near.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from moembed.model.tags import Tags
from moembed.types import UserError


def detect_tags(texts: Sequence[str], tags: Tags) -> list[str | None]:
    """The language of every text, as the code of ISO 639 that a tag must be to be found.

    All languages that the library knows compete, not those of the tags alone: a text of another one is not
    given to the nearest of them. It is None, for which the ``default_tag`` of the model stands.

    Raises:
        UserError: py3langid is not installed; no tag is a language that it knows; the language of a text is
            no tag, and the model has no default.
    """
    languages = known_languages()
    if not languages & set(tags.names):
        raise UserError(
            f"tag detect finds languages, and the tags of this model are none ({', '.join(tags.names)}): "
            "pass one of them"
        )
    found: list[str | None] = []
    for text, language in zip(texts, detect(texts), strict=True):
        if language not in tags.names:
            if tags.default is None:
                what = f"no language was found in {text[:60]!r}" if language is None else (
                    f"{text[:60]!r} was taken for the language {language!r}, which is no tag of this model"
                )  # fmt: skip
                raise UserError(
                    f"{what} (known: {', '.join(tags.names)}), and it has no default_tag: pass its tag"
                )
            language = None
        found.append(language)
    return found


def detect(texts: Sequence[str]) -> list[str | None]:
    """The language of every text, as a code of ISO 639; None of a text without a single letter."""
    identifier = _identifier()
    return [identifier.classify(text)[0] if any(map(str.isalpha, text)) else None for text in texts]


def known_languages() -> set[str]:
    """The codes of the languages that can be found.

    Raises:
        UserError: py3langid is not installed.
    """
    return set(_identifier().labels)


@lru_cache(maxsize=1)
def _identifier() -> Any:
    try:
        from py3langid import langid
    except ImportError:
        raise UserError(
            "to find the language of texts (tag detect) needs py3langid: pip install 'moembed[detect]'"
        ) from None
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
