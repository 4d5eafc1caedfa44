"""The plots of the page, each with what its colours and shapes stand for and the figures to read off."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import cycle

import numpy as np

from moembed.report import html, loads, plots
from moembed.report.comparison import tables
from moembed.report.comparison.data import Evaluation, Row, Score, Size
from moembed.report.plots import Look, Point

REFERENCE, BM25 = Look("c1", "●"), Look("c4", "✚")  # the same on every page
HUES, MARKS = ("c2", "c3", "c5", "c6"), ("■", "▲", "◆", "▼", "★")  # of the others, in turn
UNKNOWN = (math.nan, math.nan, math.nan)
AGAINST = ("texts_per_second", "peak_memory_bytes", "active_parameters")  # what quality is drawn against

Shares = Mapping[str, Mapping[str, Sequence[float]]]  # layer -> language -> load of each expert


def by(what: str, rows: Sequence[Row], evaluation: Evaluation, about: str = "") -> Iterator[str]:
    """Scores of the systems and their differences to the reference; nothing for a single row."""
    if len(rows) < 2:
        return
    series = {
        system: [row.scores.get(system, UNKNOWN) for row in rows]
        for system in evaluation.systems
        if any(system in row.scores for row in rows)
    }
    drawing = _dots(f"Score by {what}", rows, series, evaluation)
    yield html.card(f"Score by {what}", drawing + tables.figures(rows, evaluation), about)
    gaps = {
        system: [row.gaps[system][:3] if system in row.gaps else UNKNOWN for row in rows]
        for system in series  # the reference too, which has none: so both plots have their rows side by side
    }
    if any(row.gaps for row in rows):
        reference = escape(evaluation.reference)
        drawing = _dots(f"Difference by {what}", rows, gaps, evaluation, zero=True)
        about = f"The system minus {reference}: left of zero, {reference} is better."
        yield html.card(f"Difference by {what}", drawing, about)


def sizes(sizes: Mapping[str, Sequence[Size]], evaluation: Evaluation) -> Iterator[str]:
    """Score against the bytes of a vector."""
    if not sizes:
        return
    points = {
        system: [Point(size.bytes, *size.score, f"{size.dim}/{size.codec}") for size in some]
        for system, some in sizes.items()
    }
    drawing = _tradeoff("Score by bytes per vector", points, evaluation, "bytes", "{:,.0f}".format)
    about = "A point is a number of dimensions and a codec. A line joins those that no smaller vector beats."
    yield html.card("Score by bytes per vector", drawing + tables.sizes(sizes), about)


def costs(cost: Mapping[str, Mapping[str, float]], evaluation: Evaluation) -> Iterator[str]:
    """What the systems cost, and their quality against it."""
    if not cost:
        return
    yield html.card("What the systems cost", tables.costs(cost), wide=True)
    for key in AGAINST:
        known = {system: figures[key] for system, figures in cost.items() if key in figures}
        what, scores = _widest(evaluation, known)
        points = {s: [Point(known[s], *scores[s], name=s)] for s in known if s in scores}
        if len(points) > 1:
            title, written = tables.COSTS[key]
            heading = f"Score by {title.lower()}"
            drawing = _tradeoff(heading, points, evaluation, title.lower(), written)
            yield html.card(heading, drawing, f"{escape(what)}, with its 95 % interval.")


def routers(routers: Mapping[str, Shares]) -> Iterator[str]:
    """Which experts the languages of each system go to."""
    for system, layers in routers.items():
        rows = list(dict.fromkeys(language for shares in layers.values() for language in shares))
        load_LRE = {
            int(layer): _loads(shares, rows)
            for layer, shares in sorted(layers.items(), key=lambda pair: int(pair[0]))
            if shares
        }
        if load_LRE:
            drawing = loads.grid(f"Load of the experts of {system}", rows, load_LRE)
            about = "One column per expert. Blank: the fair share, 1/E."
            yield html.card(f"Experts of {escape(system)} by language", loads.SCALE + drawing, about)


def _widest(evaluation: Evaluation, systems: Collection[str]) -> tuple[str, dict[str, Score]]:
    """Scores of most ``systems``: a mean over all tasks lacks those that lack one of them, as BM25 does."""
    means = {evaluation.overall.name: evaluation.overall.scores}
    means |= {f"{row.name} of {kind}": row.scores for kind, row in evaluation.kinds.items() if row.mean}
    return max(means.items(), key=lambda mean: len(mean[1].keys() & set(systems)))


def _loads(shares: Mapping[str, Sequence[float]], rows: Sequence[str]) -> np.ndarray:
    experts = max(map(len, shares.values()))
    unknown = [math.nan] * experts
    return np.array([shares.get(row) or unknown for row in rows], dtype=float)


def _dots(
    label: str,
    rows: Sequence[Row],
    series: Mapping[str, Sequence[tuple[float, ...]]],
    evaluation: Evaluation,
    zero: bool = False,
) -> str:
    names, looks = [row.name for row in rows], _looks(series, evaluation)
    shown = [system for system, cells in series.items() if any(cell is not UNKNOWN for cell in cells)]
    legend = html.legend(map(escape, shown), _looks(shown, evaluation))
    return legend + plots.dots(label, names, list(series.values()), looks, zero)


def _tradeoff(
    label: str,
    series: Mapping[str, Sequence[Point]],
    evaluation: Evaluation,
    cost: str,
    written: Callable[[float], str],
) -> str:
    looks = _looks(series, evaluation)
    drawing = plots.tradeoff(label, list(series.values()), looks, cost, written)
    return html.legend(map(escape, series), looks) + drawing


def _looks(systems: Iterable[str], evaluation: Evaluation) -> list[Look]:
    next_look = map(Look, cycle(HUES), cycle(MARKS))
    known = {"bm25": BM25, evaluation.reference: REFERENCE}
    every = {system: known.get(system) or next(next_look) for system in evaluation.systems}
    return [every[system] for system in systems]
