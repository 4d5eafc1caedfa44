"""The result of a comparison, read as rows which the tables and plots of its page share.

A figure that the result does not have, or that is no finite number, is not there or NaN: the page leaves it
out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from moembed.compare.verdict import REAL
from moembed.report import words

NOUNS = {
    "retrieval": "queries",
    "reranking": "queries",
    "sts": "pairs",
    "pair_classification": "pairs",
    "bitext": "pairs",
    "classification": "texts",
    "clustering": "texts",
}
HEADINGS = {  # of kinds; others are their own name
    "sts": "Semantic similarity",
    "pair_classification": "Pair classification",
    "bitext": "Bitext mining",
}


class Score(NamedTuple):
    value: float
    low: float
    high: float


class Gap(NamedTuple):
    """What another system scores minus what the reference does."""

    value: float
    low: float
    high: float
    p_value: float  # after Holm's correction
    effect: float

    @property
    def real(self) -> bool:
        return self.p_value < REAL

    def turned(self) -> Gap:
        """What the reference has more; subtracted from 0 and not negated, which would make zero −0."""
        return Gap(0 - self.value, 0 - self.high, 0 - self.low, self.p_value, 0 - self.effect)


class Size(NamedTuple):
    """What a system scores with vectors of fewer dimensions, or smaller ones."""

    dim: int
    codec: str
    bytes: float
    score: Score


@dataclass(frozen=True, slots=True)
class Row:
    """A task, a language or a mean: what each system scores there, and how far it is from the reference."""

    name: str
    metric: str
    scores: dict[str, Score]
    gaps: dict[str, Gap]
    about: str = ""  # what the figures rest on
    mean: bool = False  # over tasks


@dataclass(frozen=True, slots=True)
class Evaluation:
    systems: list[str]
    reference: str
    tasks: dict[str, list[Row]]  # by kind
    kinds: dict[str, Row]  # mean over the tasks of each kind; the task itself where there is one
    overall: Row  # likewise, over all tasks
    items: int  # of all tasks together
    noun: str  # what they are
    languages: list[Row]
    lengths: list[Row]

    @property
    def others(self) -> list[str]:
        return [system for system in self.systems if system != self.reference]

    @property
    def single(self) -> list[Row]:
        """Every task by itself."""
        return [row for rows in self.tasks.values() for row in rows]

    def groups(self) -> Iterator[tuple[str, list[Row]]]:
        """Headings and rows: the tasks of every kind with their mean, and the mean of all."""
        several = len(self.tasks) > 1
        for kind, rows in self.tasks.items():
            mean = self.kinds[kind] if several else self.overall
            title = f"{heading(kind)}, {words.metric_name(rows[0].metric)}"
            yield title, [*rows, mean] if len(rows) > 1 else rows
        if several:
            yield "All kinds", [self.overall]


def read(result: Mapping[str, Any]) -> Evaluation:
    """Sort the tasks of ``result`` by kind, in the order in which kinds first occur."""
    tasks: dict[str, list[Row]] = {}
    for name, task in result["tasks"].items():
        tasks.setdefault(task["kind"], []).append(row(name, task["main"], task, _amounts(task)))
    every = [one for rows in tasks.values() for one in rows]
    return Evaluation(
        systems=list(result["systems"]),
        reference=result["reference"],
        tasks=tasks,
        kinds={kind: _mean(rows, result["kinds"][kind], rows[0].metric) for kind, rows in tasks.items()},
        overall=_mean(every, result["overall"], "score"),
        items=sum(task["items"] for task in result["tasks"].values()),
        noun=_noun(tasks),
        languages=_parts(result["languages"]),
        lengths=[replace(one, name=one.name.replace("-", "–")) for one in _parts(result["lengths"])],
    )


def row(name: str, metric: str, part: Mapping[str, Any], about: str = "") -> Row:
    """What ``part`` of a result has under ``metric``."""
    scores = {system: score(cells.get(metric, {})) for system, cells in part["metrics"].items()}
    gaps = {system: _gap(cells.get(metric, {})) for system, cells in part["differences"].items()}
    return Row(
        name,
        metric,
        {system: score for system, score in scores.items() if math.isfinite(score.value)},
        {system: gap for system, gap in gaps.items() if math.isfinite(gap.value)},
        about,
    )


def costs(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What is known of the costs of each system, and the ``seconds`` its tasks took together."""
    found = {}
    for system in result["systems"]:
        tasks = [task for task in result["tasks"].values() if system in task["metrics"]]
        seconds = sum(number(_section(task, "seconds").get(system)) for task in tasks)
        given = {**(_section(result, "cost").get(system) or {}), "seconds": seconds}
        found[system] = {key: figure for key, value in given.items() if (figure := number(value)) > 0}
    return {system: figures for system, figures in found.items() if figures}


def sizes(result: Mapping[str, Any]) -> dict[str, list[Size]]:
    """Every dimension and codec of every system."""
    found: dict[str, list[Size]] = {}
    for system in result["systems"]:
        for cell in _section(result, "curves").get(system) or ():
            size = Size(cell["dim"], cell["codec"], number(cell["bytes"]), score(cell["score"]))
            if size.bytes > 0 and math.isfinite(size.score.value):
                found.setdefault(system, []).append(size)
    return found


def heading(kind: str) -> str:
    return HEADINGS.get(kind, kind.capitalize())


def number(value: object) -> float:
    """``value`` as a float, NaN for what is not a finite number."""
    figure = float(value) if isinstance(value, (int, float)) else math.nan
    return figure if math.isfinite(figure) else math.nan


def score(cell: Mapping[str, Any]) -> Score:
    return Score(*(number(cell.get(key)) for key in Score._fields))


def _gap(cell: Mapping[str, Any]) -> Gap:
    return Gap(*(number(cell.get(key)) for key in ("mean", "low", "high", "p_holm", "effect")))


def _section(part: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return part.get(key) or {}


def _mean(rows: Sequence[Row], part: Mapping[str, Any], metric: str) -> Row:
    """The row of ``part``, which has the mean of ``rows`` under ``metric``; the row itself if it is one."""
    if len(rows) == 1:
        return rows[0]
    metrics = {one.metric for one in rows}
    mean = row(f"Mean of {len(rows)} tasks", metric, part)
    return replace(mean, mean=True, metric=metrics.pop() if len(metrics) == 1 else metric)


def _parts(parts: Mapping[str, Any]) -> list[Row]:
    return [row(name, "score", part, f"{part['items']:,} items") for name, part in parts.items()]


def _noun(kinds: Iterable[str]) -> str:
    nouns = {NOUNS.get(kind, "items") for kind in kinds}
    return nouns.pop() if len(nouns) == 1 else "items"


def _amounts(task: Mapping[str, Any]) -> str:
    documents = f", {task['documents']:,} documents" if task.get("documents") else ""
    return f"{task['items']:,} {_noun([task['kind']])}{documents}"
