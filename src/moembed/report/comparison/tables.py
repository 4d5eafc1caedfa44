"""The tables of the page: scores, differences to the reference, every metric, and what the systems cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from moembed.report import html, words
from moembed.report.comparison import data
from moembed.report.comparison.data import Evaluation, Gap, Row, Score, Size

MISSING = '<span class="muted">–</span>'
FIGURES = "The figures"
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "texts_per_second": ("Texts per second", words.count),
    "peak_memory_bytes": ("Peak memory", words.size),
    "active_parameters": ("Active parameters", words.count),
    "parameters": ("All parameters", words.count),
    "bytes_per_vector": ("Bytes per vector", "{:,.0f}".format),
    "seconds": ("This evaluation", words.duration),
}


def scores(evaluation: Evaluation) -> str:
    """Tasks x systems by the main metric of each task; the highest score of a row is marked."""
    groups = {
        escape(heading): [[_title(row), *_scores(row.scores, evaluation.systems)] for row in rows]
        for heading, rows in evaluation.groups()
    }
    return html.grouped_table(["", *_heads(evaluation)], groups)


def differences(evaluation: Evaluation) -> str:
    """Tasks x other systems: how far each is from the reference."""
    groups = {
        escape(heading): [
            [_title(row), *(_gap(row.gaps.get(other)) for other in evaluation.others)] for row in rows
        ]
        for heading, rows in evaluation.groups()
    }
    heads = [f"{escape(other)}<small>− {escape(evaluation.reference)}</small>" for other in evaluation.others]
    return html.grouped_table(["", *heads], groups)


def figures(rows: Sequence[Row], evaluation: Evaluation) -> str:
    """What a plot of ``rows`` shows, to read off."""
    cells = [[_title(row), *_scores(row.scores, evaluation.systems)] for row in rows]
    return html.details(FIGURES, html.table(["", *_heads(evaluation)], cells))


def metrics(result: Mapping[str, Any], evaluation: Evaluation) -> str:
    """Every metric of every task; empty where no task has more than its main one."""
    groups = {}
    for name, task in result["tasks"].items():
        found = dict.fromkeys(metric for cells in task["metrics"].values() for metric in cells)
        if len(found) > 1:
            rows = [data.row(words.metric_name(metric), metric, task) for metric in found]
            groups[escape(name)] = [
                [_title(row), *(_score(row.scores.get(system)) for system in evaluation.systems)]
                for row in rows
            ]
    if not groups:
        return ""
    return html.details("Every metric", html.grouped_table(["", *_heads(evaluation)], groups))


def costs(cost: Mapping[str, Mapping[str, float]]) -> str:
    """Systems x what is known of their costs."""
    known = [key for key in COSTS if any(key in figures for figures in cost.values())]
    rows = [
        [escape(system), *(COSTS[key][1](figures[key]) if key in figures else MISSING for key in known)]
        for system, figures in cost.items()
    ]
    return html.table(["", *(COSTS[key][0] for key in known)], rows)


def sizes(sizes: Mapping[str, Sequence[Size]]) -> str:
    """Dimensions x codecs of every system, to read off."""
    codecs = list(dict.fromkeys(size.codec for some in sizes.values() for size in some))
    groups = {}
    for system, some in sizes.items():
        cells = {(size.dim, size.codec): _size(size) for size in some}
        dims = sorted({size.dim for size in some}, reverse=True)
        groups[escape(system)] = [
            [f"{dim:,}", *(cells.get((dim, codec), MISSING) for codec in codecs)] for dim in dims
        ]
    return html.details(FIGURES, html.grouped_table(["Dimensions", *map(escape, codecs)], groups))


def _heads(evaluation: Evaluation) -> Iterator[str]:
    for system in evaluation.systems:
        mark = "<small>reference</small>" if evaluation.others and system == evaluation.reference else ""
        yield escape(system) + mark


def _title(row: Row) -> str:
    name = f"<b>{escape(row.name)}</b>" if row.mean else escape(row.name)
    return name + (f"<small>{escape(row.about)}</small>" if row.about else "")


def _scores(scores: Mapping[str, Score], systems: Sequence[str]) -> Iterator[str]:
    """A cell per system; the best of several is marked."""
    best = max((score.value for score in scores.values()), default=0.0)
    for system in systems:
        score = scores.get(system)
        yield _score(score, mark=score is not None and len(scores) > 1 and score.value == best)


def _score(score: Score | None, mark: bool = False) -> str:
    if score is None:
        return MISSING
    value = words.decimal(score.value)
    return (f"<mark>{value}</mark>" if mark else value) + _small(words.interval(score.low, score.high))


def _gap(gap: Gap | None) -> str:
    if gap is None:
        return MISSING
    value = words.decimal(gap.value, "+")
    if gap.real:
        value = f"<b>{'▲' if gap.value > 0 else '▼'} {value}</b>"
    effect = "" if math.isnan(gap.effect) else f"effect {words.decimal(gap.effect, '+')}"
    facts = ", ".join(filter(None, (words.p_value(gap.p_value), effect)))
    return value + _small(words.interval(gap.low, gap.high)) + _small(facts)


def _size(size: Size) -> str:
    return _score(size.score) + _small(f"{size.bytes:,.0f} B")


def _small(text: str) -> str:
    return f"<small>{escape(text)}</small>" if text else ""
