"""A suite of a domain against a general one: how much every system loses, and on texts as complex as those.

Scores of different kinds of tasks are no one scale, so only kinds that both suites have are compared: the
score of a suite is the mean over these kinds of the mean over its tasks of that kind.

**Drop**: general less domain; positive, where the domain is harder. The suites share no items, so both are
resampled on their own (`moembed.compare.significance`), with one draw for all systems.

**Rank correlation**: Spearman's, of the systems in the two suites. Where it is low, a general benchmark does
not tell which system to take for the domain. Its interval is over the items, not over other systems.

**Strata**: the items of both suites are cut at common quantiles of a measure of complexity, and the drop is
taken within each part. The ``matched`` drop is the mean of these, weighted by the items of the domain: what
is lost on general texts as complex as those of the domain. What then remains is the domain's.

Source: Tang and Yang, *Do We Need Domain-Specific Embedding Models?* (arXiv 2409.18511), which groups data
sets by complexity; here it is the items, so that two suites of few tasks can be compared.
Shapes: Q items, D draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from zlib import crc32

import numpy as np

from moembed.compare.estimates import Difference, Estimate
from moembed.compare.results import as_json
from moembed.compare.scores import MAIN, Scores
from moembed.compare.significance import Runs, average, difference, interval, resample
from moembed.compare.statistics import STATISTICS, statistic
from moembed.types import UserError

DRAWS = 2000
LEAST = 20  # items of a task within a part: of fewer a score says too little
_FEW_SYSTEMS = 3

Systems = Mapping[str, Mapping[str, Scores]]  # system -> task -> scores
Complexity = Mapping[str, Mapping[str, float]]  # task -> item -> how complex


@dataclass(frozen=True, slots=True)
class Drop:
    """What a system scores in both suites, and ``general - domain``, in all and by kind of task."""

    domain: Estimate
    general: Estimate
    drop: Difference
    kinds: dict[str, Difference]


@dataclass(frozen=True, slots=True)
class Part:
    """The items between two values of a measure: how many of each suite, and the drop of every system; of a
    part that one of the suites hardly reaches there is none."""

    low: float
    high: float
    domain_items: int
    general_items: int
    drops: dict[str, Difference]


@dataclass(frozen=True, slots=True)
class Stratified:
    """By one measure: its mean in both suites, the parts, and the drop at equal complexity.

    ``covered`` is the share of the domain's items that lie in parts with a drop.
    """

    domain_mean: float
    general_mean: float
    parts: list[Part]
    matched: dict[str, Difference]
    covered: float


@dataclass(frozen=True, slots=True)
class DomainComparison:
    """``left_out``: tasks of a kind that the other suite has not. ``rank``: None for fewer than 3 systems."""

    domain: str
    general: str
    kinds: list[str]
    drops: dict[str, Drop]
    rank: Estimate | None
    strata: dict[str, Stratified] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """Lists, dicts, strings and numbers; what is not known has no key."""
        return as_json(self)


def compare_suites(
    systems: Systems,
    domain: tuple[str, Sequence[str]],
    general: tuple[str, Sequence[str]],
    complexity: Mapping[str, Complexity] | None = None,
    parts: int = 3,
    judge: str | None = None,
) -> DomainComparison:
    """Compare every system in two suites.

    Args:
        domain, general: the name of the suite, and of its tasks.
        complexity: by measure.
        parts: into how many the items are cut.
        judge: the system whose errors are the measure ``error``; there it is not compared.

    Raises:
        UserError: no kind of task is in both suites, or no system was scored on it.
    """
    scored = {name: by_task for name, by_task in systems.items() if by_task}
    kinds_of = {task: scores.kind for by_task in scored.values() for task, scores in by_task.items()}
    sides = [[task for task in tasks if task in kinds_of] for _, tasks in (domain, general)]
    shared = [kind for kind in MAIN if all(any(kinds_of[task] == kind for task in tasks) for tasks in sides)]
    if not shared:
        raise UserError(no_shared_kind(domain[0], general[0]))
    kept = [[task for task in tasks if kinds_of[task] in shared] for tasks in sides]
    whole = {name: s for name, s in scored.items() if all(task in s for tasks in kept for task in tasks)}
    if not whole:
        raise UserError("no system was scored on every task of both suites")
    runs = {name: [_suite(s, tasks, shared) for tasks in kept] for name, s in whole.items()}
    drops = {name: _drop(whole[name], kept, shared, *pair) for name, pair in runs.items()}
    strata = {}
    for measure, values in (complexity or {}).items():
        others = {name: s for name, s in whole.items() if measure != "error" or name != judge}
        if not others:
            raise UserError(no_other_system(judge))
        strata[measure] = stratified(others, kept, shared, values, parts)
    left_out = [task for tasks in sides for task in tasks if kinds_of[task] not in shared]
    return DomainComparison(
        domain[0], general[0], shared, drops, _rank(list(runs.values())), strata, left_out
    )


def no_shared_kind(domain: str, general: str) -> str:
    """Why two suites cannot be compared."""
    return (
        f"{domain} and {general} share no kind of task, and scores of different kinds are no one scale: add "
        "tasks of one kind to both"
    )


def no_other_system(judge: str | None) -> str:
    """Why the errors of a system cannot be a measure."""
    return f"the errors of {judge} are to sort the items, and no other system is compared"


def _suite(scores: Mapping[str, Scores], tasks: Sequence[str], kinds: Sequence[str]) -> Runs:
    """The mean over kinds of the mean over tasks."""
    by_kind = [[_runs(scores[task]) for task in tasks if scores[task].kind == kind] for kind in kinds]
    return average([average(runs) for runs in by_kind])


def _runs(scores: Scores, row_Q: np.ndarray | None = None) -> Runs:
    """One task, or the items ``row_Q`` of it; the draws are those of every other system."""
    metric = MAIN[scores.kind]
    value_Q = scores.values[metric] if row_Q is None else scores.values[metric][row_Q]
    sums_up = statistic(metric)
    rng = np.random.default_rng([crc32(scores.task.encode()), len(value_Q)])
    return Runs(np.array([sums_up(value_Q)]), resample(sums_up, [value_Q], DRAWS, rng), sums_up.bounds)


def _drop(
    scores: Mapping[str, Scores],
    kept: Sequence[Sequence[str]],
    kinds: Sequence[str],
    domain: Runs,
    general: Runs,
) -> Drop:
    items = sum(len(scores[task].item) for tasks in kept for task in tasks)
    by_kind = {}
    for kind in kinds:
        own, other = (_suite(scores, _of_kind(scores, tasks, kind), [kind]) for tasks in kept)
        by_kind[kind] = difference(other, own, items)
    return Drop(interval(domain), interval(general), difference(general, domain, items), by_kind)


def _of_kind(scores: Mapping[str, Scores], tasks: Sequence[str], kind: str) -> list[str]:
    return [task for task in tasks if scores[task].kind == kind]


def _rank(runs: Sequence[Sequence[Runs]]) -> Estimate | None:
    """Spearman's correlation over systems, with its interval over draws of the items."""
    if len(runs) < _FEW_SYSTEMS:
        return None
    spearman = STATISTICS["spearman"]
    value = spearman(np.array([[own.value, other.value] for own, other in runs]))
    draw_SD2 = np.stack([np.stack([pair[0].draw_RD[0], pair[1].draw_RD[0]], axis=1) for pair in runs])
    drawn_D = [spearman(draw_SD2[:, draw]) for draw in range(DRAWS)]
    low, high = np.quantile(drawn_D, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


# ---- strata ------------------------------------------------------------------------------------------------


def stratified(
    systems: Systems,
    kept: Sequence[Sequence[str]],
    kinds: Sequence[str],
    complexity: Complexity,
    parts: int,
) -> Stratified:
    """The drops within equal parts of the items of both suites, cut by a measure.

    Raises:
        UserError: no task of one of the suites has the measure.
    """
    any_scores = next(iter(systems.values()))
    sides = [[task for task in tasks if task in complexity] for tasks in kept]
    if not all(sides):
        raise UserError(
            "the error of a system is known of single items alone, and no task here has such scores"
        )
    value_of = {
        task: np.array([complexity[task][item] for item in any_scores[task].item])
        for tasks in sides
        for task in tasks
    }
    side_values = [np.concatenate([value_of[task] for task in tasks]) for tasks in sides]
    inner = np.quantile(np.concatenate(side_values), np.arange(1, parts) / parts)
    cuts = [-np.inf, *np.unique(inner), np.inf]
    found: list[Part] = []
    weighted: dict[str, list[tuple[int, Runs, Runs]]] = {name: [] for name in systems}
    for low, high in pairwise(cuts):
        row_of = {task: np.flatnonzero((v > low) & (v <= high)) for task, v in value_of.items()}
        counts = [sum(len(row_of[task]) for task in tasks) for tasks in sides]
        if not any(counts):  # many items have one value
            continue
        pairs = {name: _within(s, sides, kinds, row_of) for name, s in systems.items()}
        drops = {}
        for name, pair in pairs.items():
            if pair is not None:
                weighted[name].append((counts[0], *pair))
                drops[name] = difference(pair[1], pair[0], sum(counts))
        inside_N = np.concatenate([value_of[task][rows] for task, rows in row_of.items()])
        found.append(Part(float(inside_N.min()), float(inside_N.max()), counts[0], counts[1], drops))
    total = sum(part.domain_items for part in found)
    covered = sum(part.domain_items for part in found if part.drops) / total
    items = sum(part.domain_items + part.general_items for part in found)
    matched = {name: _matched(some, items) for name, some in weighted.items() if some}
    means = [float(values.mean()) for values in side_values]
    return Stratified(means[0], means[1], found, matched, covered)


def _within(
    scores: Mapping[str, Scores],
    sides: Sequence[Sequence[str]],
    kinds: Sequence[str],
    row_of: Mapping[str, np.ndarray],
) -> tuple[Runs, Runs] | None:
    """Both suites on some of the items, over the kinds of which both have enough; None: there is none."""
    means: list[list[Runs]] = [[], []]
    for kind in kinds:
        enough = [
            [task for task in _of_kind(scores, tasks, kind) if len(row_of[task]) >= LEAST] for tasks in sides
        ]
        if all(enough):
            for mean, tasks in zip(means, enough, strict=True):
                mean.append(average([_runs(scores[task], row_of[task]) for task in tasks]))
    return (average(means[0]), average(means[1])) if means[0] else None


def _matched(weighted: Sequence[tuple[int, Runs, Runs]], items: int) -> Difference:
    share = np.array([count for count, _, _ in weighted], dtype=np.float64)
    share /= share.sum()

    def mean(runs: Sequence[Runs]) -> Runs:
        value_R = sum(w * run.value_R for w, run in zip(share, runs, strict=True))
        draw_RD = sum(w * run.draw_RD for w, run in zip(share, runs, strict=True))
        return Runs(np.asarray(value_R), np.asarray(draw_RD), runs[0].bounds)

    return difference(mean([one[2] for one in weighted]), mean([one[1] for one in weighted]), items)
