"""The plots of the page, each with what its colours and shapes stand for and the figures to read off."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle

import numpy as np

from moembed.compare.estimates import Estimate
from moembed.evaluation.result import Routers, SizeScore
from moembed.report import loads, plots
from moembed.report.comparison import tables
from moembed.report.comparison.rows import Row, Rows
from moembed.report.pieces import UNKNOWN, Card, Entry, Table, ends
from moembed.report.plots import Look, Point

REFERENCE, BM25 = Look("c1", "●"), Look("c4", "✚")  # the same on every page
HUES, MARKS = ("c2", "c3", "c5", "c6"), ("■", "▲", "◆", "▼", "★")  # of the others, in turn
AGAINST = ("texts_per_second", "peak_memory_bytes", "active_parameters")  # what quality is drawn against


def by(what: str, some: Sequence[Row], rows: Rows, about: str = "") -> Iterator[Card]:
    """Scores of the systems and their differences to the reference; nothing for a single row."""
    if len(some) < 2:
        return
    scores = {
        system: [ends(one.scores.get(system)) for one in some]
        for system in rows.systems
        if any(system in one.scores for one in some)
    }
    title = f"Score by {what}"
    yield _dots(title, some, scores, rows, about=about, tables=[tables.figures(some, rows)])
    # the reference has no difference, and still its place: so both plots have their rows side by side
    gaps = {system: [ends(one.gaps.get(system)) for one in some] for system in scores}
    if any(one.gaps for one in some):
        about = f"The system minus {rows.reference}: left of zero, {rows.reference} is better."
        yield _dots(f"Difference by {what}", some, gaps, rows, about=about, zero=True)


def sizes(sizes: Mapping[str, Sequence[SizeScore]], rows: Rows) -> Iterator[Card]:
    """Score against the bytes of a vector."""
    points = {
        system: [
            Point(size.bytes, *ends(size.score), f"{size.dim}/{size.codec}")
            for size in some
            if size.bytes > 0 and math.isfinite(size.score.value)
        ]
        for system, some in sizes.items()
    }
    points = {system: some for system, some in points.items() if some}
    if not points:
        return
    about = "A point is a number of dimensions and a codec. A line joins those that no smaller vector beats."
    card = _tradeoff("Score by bytes per vector", points, rows, about, ("bytes", "{:,.0f}".format))
    yield replace(card, tables=[tables.sizes(sizes)])


def costs(cost: Mapping[str, Mapping[str, float]], rows: Rows) -> Iterator[Card]:
    """What the systems cost, and their quality against it."""
    if not cost:
        return
    yield Card("What the systems cost", wide=True, tables=[tables.costs(cost)])
    for key in AGAINST:
        known = {system: figures[key] for system, figures in cost.items() if key in figures}
        what, scores = _widest(rows, known)
        points = {s: [Point(known[s], *ends(scores[s]), name=s)] for s in known if s in scores}
        if len(points) > 1:
            title, written = tables.COSTS[key]
            about = f"{what}, with its 95 % interval."
            yield _tradeoff(f"Score by {title.lower()}", points, rows, about, (title.lower(), written))


def routers(routers: Mapping[str, Routers]) -> Iterator[Card]:
    """Which experts the languages of each system go to."""
    for system, layers in routers.items():
        languages = list(dict.fromkeys(language for shares in layers.values() for language in shares))
        load_LRE = {
            int(layer): _loads(shares, languages)
            for layer, shares in sorted(layers.items(), key=lambda pair: int(pair[0]))
            if shares
        }
        if load_LRE:
            drawing = loads.grid(f"Load of the experts of {system}", languages, load_LRE)
            about = "One column per expert. Blank: the fair share, 1/E."
            yield Card(f"Experts of {system} by language", about, scale=True, drawing=drawing)


def _widest(rows: Rows, systems: Collection[str]) -> tuple[str, dict[str, Estimate]]:
    """Scores of most ``systems``: a mean over all tasks lacks those that lack one of them, as BM25 does."""
    means = {rows.overall.name: rows.overall.scores}
    means |= {f"{row.name} of {kind}": row.scores for kind, row in rows.kinds.items() if row.mean}
    return max(means.items(), key=lambda mean: len(mean[1].keys() & set(systems)))


def _loads(shares: Mapping[str, Sequence[float]], languages: Sequence[str]) -> np.ndarray:
    experts = max(map(len, shares.values()))
    unknown = [math.nan] * experts
    return np.array([shares.get(language) or unknown for language in languages], dtype=float)


def _dots(
    title: str,
    some: Sequence[Row],
    series: Mapping[str, Sequence[tuple[float, ...]]],
    rows: Rows,
    about: str,
    zero: bool = False,
    tables: Sequence[Table] = (),
) -> Card:
    names = [one.name for one in some]
    shown = [system for system, cells in series.items() if any(cell is not UNKNOWN for cell in cells)]
    drawing = plots.dots(title, names, list(series.values()), _looks(series, rows), zero)
    legend = list(map(Entry, _looks(shown, rows), shown))
    return Card(title, about, legend=legend, drawing=drawing, tables=tables)


def _tradeoff(
    title: str,
    series: Mapping[str, Sequence[Point]],
    rows: Rows,
    about: str,
    axis: tuple[str, Callable[[float], str]],
) -> Card:
    looks = _looks(series, rows)
    drawing = plots.tradeoff(title, list(series.values()), looks, *axis)
    return Card(title, about, legend=list(map(Entry, looks, series)), drawing=drawing)


def _looks(systems: Iterable[str], rows: Rows) -> list[Look]:
    next_look = map(Look, cycle(HUES), cycle(MARKS))
    known = {"bm25": BM25, rows.reference: REFERENCE}
    every = {system: known.get(system) or next(next_look) for system in rows.systems}
    return [every[system] for system in systems]
