"""What a page is made of, as values: sections of cards with drawings, tables and sentences.

Only templates know HTML. They escape every string; a drawing is markup already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from moembed.compare import formatting
from moembed.compare.estimates import Difference, Estimate
from moembed.compare.verdict import is_real
from moembed.report.plots import Look


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure or a name with small remarks below it; empty remarks are not shown."""

    text: str
    small: Sequence[str] = ()
    look: Literal["", "strong", "best", "missing"] = ""


Row = Sequence[Cell | str]  # the first cell is the head of the row
MISSING = Cell("–", look="missing")
UNKNOWN = (math.nan, math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows below headings, which may be empty; ``folded`` is a heading that opens the table."""

    head: Row
    groups: Mapping[str, Sequence[Row]]
    folded: str = ""


class Entry(NamedTuple):
    """Of a legend: what a colour and a shape of the drawing stand for."""

    look: Look
    name: str


@dataclass(frozen=True, slots=True)
class Card:
    """A heading and, in this order, what is not empty of the other parts.

    Attributes:
        about: the caption.
        wide: as wide as the page.
        text: a sentence, set apart by ``alert`` where something is wrong.
        scale: what the colours of a drawing of expert loads stand for.
        facts: names and values.
    """

    heading: str
    about: str = ""
    wide: bool = False
    text: str = ""
    alert: bool = False
    sentences: Sequence[str] = ()
    scale: bool = False
    legend: Sequence[Entry] = ()
    drawing: Markup = field(default_factory=Markup)
    tables: Sequence[Table] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


class Tile(NamedTuple):
    """One of the few figures people look for first."""

    label: str
    value: str
    more: str


def figure_cell(figure: Estimate | Difference | None) -> Cell:
    if figure is None:
        return MISSING
    return score_cell(figure) if isinstance(figure, Estimate) else difference_cell(figure)


def ends(figure: Estimate | Difference | None) -> tuple[float, float, float]:
    """Value, low and high, as a plot of dots takes them; NaN is not drawn."""
    if figure is None:
        return UNKNOWN
    middle = figure.value if isinstance(figure, Estimate) else figure.mean
    return middle, figure.low, figure.high


def score_cell(score: Estimate | None, best: bool = False) -> Cell:
    """A score with its interval."""
    if score is None or math.isnan(score.value):
        return MISSING
    brackets = formatting.interval(score.low, score.high)
    return Cell(formatting.decimal(score.value), [brackets], "best" if best else "")


def difference_cell(gap: Difference | None) -> Cell:
    """A difference with its interval, p-value and effect; a real one is marked by an arrow."""
    if gap is None or math.isnan(gap.mean):
        return MISSING
    effect = "" if math.isnan(gap.effect) else f"effect {formatting.decimal(gap.effect, '+')}"
    facts = ", ".join(filter(None, (formatting.p_value(gap.p_holm), effect)))
    value, real = formatting.decimal(gap.mean, "+"), is_real(gap)
    if real:
        value = f"{'▲' if gap.mean > 0 else '▼'} {value}"
    return Cell(value, [formatting.interval(gap.low, gap.high), facts], "strong" if real else "")


def made(about: Mapping[str, Any]) -> Iterator[Card]:
    """When, on what and from where a page was made: a card of plain facts, and one for each group of them."""
    plain = {name: str(value) for name, value in about.items() if not isinstance(value, Mapping)}
    if plain:
        yield Card("Date, versions, machine", facts=plain)
    for name, values in about.items():
        if isinstance(values, Mapping) and values:
            heading = "Paths" if name == "paths" else f"Paths of the {name}"
            yield Card(heading, facts={key: str(value) for key, value in values.items()})
