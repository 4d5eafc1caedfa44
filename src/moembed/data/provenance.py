"""Under which licence a source may be used and where it comes from, as far as a recipe says it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from pydantic import Field

from moembed.config import Strict

UNKNOWN = "unknown"


class Provenance(Strict):
    """``license`` and ``origin``, an address or a sentence, are told in reports and cards."""

    license: str | None = Field(None, min_length=1)
    origin: str | None = Field(None, min_length=1)


class Located(Protocol):
    """A source with a path and a `Provenance`."""

    @property
    def path(self) -> str: ...

    @property
    def license(self) -> str | None: ...

    @property
    def origin(self) -> str | None: ...


def provenance(source: Located) -> dict[str, Any]:
    """For a report: what the recipe says, else ``unknown``."""
    return {"license": source.license or UNKNOWN, "origin": source.origin or UNKNOWN}


def credit(source: Located) -> str:
    """For a card: the path, and behind semicolons the licence and the origin that are known."""
    licence = [f"license {source.license}"] if source.license else []
    return "; ".join([source.path, *licence, *([f"from {source.origin}"] if source.origin else [])])


def lacking(sources: Iterable[tuple[str, Located]]) -> list[str]:
    """A sentence on the sources, each with its name, whose licence nobody has said."""
    names = [name for name, source in sources if source.license is None]
    if not names:
        return []
    return [
        f"the licence of {', '.join(names)} is unknown: say it with license (and origin) of the source; both "
        "come into the model's card"
    ]
