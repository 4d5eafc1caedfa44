"""A comparison sorted into the rows which the tables and plots of its page share.

A figure that is not finite is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from moembed.compare import formatting
from moembed.compare.estimates import Difference, Estimate
from moembed.compare.formatting import kind_name
from moembed.compare.results import SCORE, Cells, Comparison, GroupCells, TaskCells
from moembed.evaluation.result import EvaluatedTask, EvaluationResult, SizeScore

NOUNS = {
    "retrieval": "queries",
    "reranking": "queries",
    "sts": "pairs",
    "bitext": "pairs",
    "pair_classification": "pairs",
    "classification": "texts",
    "clustering": "texts",
}
BASELINES = ("static", "bm25")
HEADINGS = {"sts": "Semantic similarity", "bitext": "Bitext mining"}  # of kinds; others are their own name


@dataclass(frozen=True, slots=True)
class Row:
    """A task, a language or a mean: what each system scores there, and how far it is from the reference."""

    name: str
    metric: str
    scores: dict[str, Estimate]
    gaps: dict[str, Difference]
    about: str = ""  # what the figures rest on
    mean: bool = False  # over tasks


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of a page.

    Attributes:
        tasks: by kind.
        kinds, overall: the mean over the tasks of each kind, and over all; the task itself if there is one.
        items: of all tasks together; ``noun`` says what they are.
    """

    systems: list[str]
    reference: str
    tasks: dict[str, list[Row]]
    kinds: dict[str, Row]
    overall: Row
    items: int
    noun: str
    languages: list[Row]
    lengths: list[Row]

    @property
    def others(self) -> list[str]:
        return [system for system in self.systems if system != self.reference]

    @property
    def columns(self) -> list[str]:
        """All systems, those first that are looked for: a narrow screen shows no more than two or three."""
        return [*[self.reference] * (self.reference in self.systems), *self.contenders]

    @property
    def contenders(self) -> list[str]:
        """All but the reference: models first, then the baselines that every evaluation has."""
        return sorted(self.others, key=lambda system: system in BASELINES)

    @property
    def single(self) -> list[Row]:
        """Every task by itself."""
        return [row for rows in self.tasks.values() for row in rows]

    def groups(self) -> Iterator[tuple[str, list[Row]]]:
        """Headings and rows: the tasks of every kind with their mean, and the mean of all."""
        several = len(self.tasks) > 1
        for kind, rows in self.tasks.items():
            mean = self.kinds[kind] if several else self.overall
            title = f"{heading(kind)}, {formatting.metric_name(rows[0].metric)}"
            yield title, [*rows, mean] if len(rows) > 1 else rows
        if several:
            yield "All kinds", [self.overall]


def sort(result: Comparison) -> Rows:
    """The tasks by kind, in the order in which kinds first occur."""
    tasks: dict[str, list[Row]] = {}
    for name, task in result.tasks.items():
        tasks.setdefault(task.kind, []).append(row(name, task.main, task, _amounts(task)))
    every = [one for rows in tasks.values() for one in rows]
    return Rows(
        systems=result.systems,
        reference=result.reference,
        tasks=tasks,
        kinds={kind: _mean(rows, result.kinds[kind], rows[0].metric) for kind, rows in tasks.items()},
        overall=_mean(every, result.overall, SCORE),
        items=sum(task.items for task in result.tasks.values()),
        noun=_noun(tasks),
        languages=_groups(result.languages),
        lengths=[replace(one, name=one.name.replace("-", "–")) for one in _groups(result.lengths)],
    )


def row(name: str, metric: str, cells: Cells, about: str = "") -> Row:
    """What ``cells`` hold under ``metric``."""
    scores = {system: own[metric] for system, own in cells.metrics.items() if metric in own}
    gaps = {system: own[metric] for system, own in cells.differences.items() if metric in own}
    return Row(
        name,
        metric,
        {system: score for system, score in scores.items() if math.isfinite(score.value)},
        {system: gap for system, gap in gaps.items() if math.isfinite(gap.mean)},
        about,
    )


def costs(result: Comparison) -> dict[str, dict[str, float]]:
    """What is known of the costs of each system, and the ``seconds`` its tasks took together."""
    known = result.cost if isinstance(result, EvaluationResult) else {}
    found: dict[str, dict[str, float]] = {}
    for system in result.systems:
        tasks = [task for task in result.tasks.values() if isinstance(task, EvaluatedTask)]
        figures = asdict(known[system]) if system in known else {}
        figures["seconds"] = sum(task.seconds.get(system, 0.0) for task in tasks)
        found[system] = {key: value for key, value in figures.items() if value and 0 < value < math.inf}
    return {system: figures for system, figures in found.items() if figures}


def sizes(result: Comparison) -> dict[str, list[SizeScore]]:
    """Every dimension and codec of every system."""
    return dict(result.curves) if isinstance(result, EvaluationResult) else {}


def heading(kind: str) -> str:
    return HEADINGS.get(kind, kind_name(kind).capitalize())


def _mean(rows: Sequence[Row], cells: Cells, metric: str) -> Row:
    """The mean of ``rows`` under ``metric``; the row itself if it is the only one."""
    if len(rows) == 1:
        return rows[0]
    metrics = {one.metric for one in rows}
    mean = row(f"Mean of {len(rows)} tasks", metric, cells)
    return replace(mean, mean=True, metric=metrics.pop() if len(metrics) == 1 else metric)


def _groups(groups: Mapping[str, GroupCells]) -> list[Row]:
    return [row(name, SCORE, cells, f"{cells.items:,} items") for name, cells in groups.items()]


def _noun(kinds: Iterable[str]) -> str:
    nouns = {NOUNS.get(kind, "items") for kind in kinds}
    return nouns.pop() if len(nouns) == 1 else "items"


def _amounts(task: TaskCells) -> str:
    documents = task.documents if isinstance(task, EvaluatedTask) else None
    return f"{task.items:,} {_noun([task.kind])}" + (f", {documents:,} documents" if documents else "")
