"""Scores of several systems -> one result: means with intervals, and differences with p-values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np

from moembed.compare.align import (
    Aligned,
    Systems,
    any_of,
    bucket_name,
    by_language,
    by_length,
    by_task,
    require_common_tasks,
    shared_metrics,
)
from moembed.compare.estimates import Difference
from moembed.compare.formatting import plural
from moembed.compare.ranks import borda_ranks
from moembed.compare.results import (
    SCORE,
    Cells,
    Comparison,
    Differences,
    GroupCells,
    KindCells,
    MeanCells,
    Metrics,
    TaskCells,
)
from moembed.compare.scores import MAIN, Statistic, statistic
from moembed.compare.significance import Runs, average, difference, holm, interval, resample, swap
from moembed.types import UserError

Split = Callable[[Aligned], Iterable[tuple[Any, Aligned]]]


@dataclass(frozen=True, slots=True)
class _Part:
    """A task, or some of its items: what every system scores, and has more than the reference by swaps."""

    kind: str
    main: str
    items: int
    languages: list[str]
    runs: dict[str, dict[str, Runs]]  # metric, system
    swaps: dict[str, dict[str, np.ndarray]]  # metric, system: (D,)


def compare(
    systems: Systems, reference: str | None = None, draws: int = 2000, paired: Collection[str] = ()
) -> Comparison:
    """95 % intervals of every system and of what it has more than the reference, with p-values.

    By task, over all tasks, by kind of task, by language and by length of the items. Where tasks are taken
    together, the mean of their main metrics is compared, every task counts alike, and only systems that have
    all of these tasks take part. ``p_holm`` corrects for all comparisons of a section; among the tasks, for
    those of the main metrics, and apart from them for those of every other metric. Random numbers depend on
    the names of tasks alone: a further system or task changes no interval. Methods: see ``significance``.

    Args:
        systems: name -> an entry per seed -> task -> scores.
        reference: what the others are compared to; default: the last system.
        draws: resamples of the items, and random swaps of two systems.
        paired: systems whose run i saw the same batches as run i of the reference.

    Raises:
        UserError: nothing to compare, an unknown reference, a system that has no task in common with it,
            pairs of runs where there are not as many of both, and what ``align.by_task`` refuses.
    """
    names, tasks = list(systems), by_task(systems)
    plan = _Plan(names, names[-1] if reference is None else reference, draws, frozenset(paired))
    if plan.reference not in names:
        raise UserError(f"no system is called {reference!r}: the reference must be one of {', '.join(names)}")
    require_common_tasks(systems, plan.reference)
    for name in sorted(plan.paired):
        if len(systems[name]) != len(systems[plan.reference]):
            raise UserError(
                f"{name} has {plural(len(systems[name]), 'run')} and {plan.reference} "
                f"{len(systems[plan.reference])}: only as many can be paired"
            )
    parts = {task: plan.part(aligned) for task, aligned in tasks.items()}
    kinds: dict[str, list[_Part]] = {}
    for part in parts.values():
        kinds.setdefault(part.kind, []).append(part)
    result = Comparison(
        systems=names,
        reference=plan.reference,
        seeds={name: len(seeds) for name, seeds in systems.items()},
        paired=[name for name in names if name in plan.paired and len(systems[name]) > 1],
        tasks={task: plan.task(part) for task, part in parts.items()},
        overall=MeanCells(*plan.mean(list(parts.values())), len(parts)),
        kinds={
            kind: KindCells(*plan.mean(same, same[0].main), len(same), same[0].main)
            for kind, same in kinds.items()
        },
        languages=plan.groups(tasks, parts, by_language),
        lengths={bucket_name(b): cells for b, cells in plan.groups(tasks, parts, by_length).items()},
    )
    for family in _families(result):
        p_holm_C = holm([cells[metric].p_value for cells, metric in family])
        for (cells, metric), p_holm in zip(family, p_holm_C, strict=True):
            cells[metric] = replace(cells[metric], p_holm=float(p_holm))
    return replace(result, borda=borda_ranks(result))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be compared, and the steps from scores to the cells of the result."""

    names: list[str]
    reference: str
    draws: int
    paired: frozenset[str]

    def part(self, aligned: Aligned) -> _Part:
        scores, metrics = any_of(aligned), shared_metrics(aligned)
        main = MAIN.get(scores.kind, "")
        by_statistic: dict[Statistic, list[str]] = {}
        for metric in metrics:
            by_statistic.setdefault(statistic(metric), []).append(metric)
        runs: dict[str, dict[str, Runs]] = {}
        for sums_up, same in by_statistic.items():
            runs |= self._runs(aligned, sums_up, same)
        return _Part(
            kind=scores.kind,
            main=main if main in metrics else metrics[0],
            items=len(scores.item),
            languages=sorted(set(scores.language) - {""}),
            runs={metric: runs[metric] for metric in metrics},
            swaps={metric: self._swaps(aligned, metric) for metric in metrics},
        )

    def _runs(
        self, aligned: Aligned, sums_up: Statistic, metrics: Sequence[str]
    ) -> dict[str, dict[str, Runs]]:
        """metric -> system -> runs; all on the same resamples, and those of a statistic at once."""
        keys = [(metric, name, run) for metric in metrics for name in aligned for run in aligned[name]]
        value_X = [run.values[metric] for metric, _, run in keys]
        draw_XD = resample(sums_up, value_X, self.draws, _rng(aligned, "resample"))
        scored: dict[str, dict[str, list[tuple[float, np.ndarray]]]] = {}
        for (metric, name, _), value, draw_D in zip(keys, value_X, draw_XD, strict=True):
            scored.setdefault(metric, {}).setdefault(name, []).append((sums_up(value), draw_D))
        return {
            metric: {
                name: Runs(np.array([v for v, _ in runs]), np.array([d for _, d in runs]), sums_up.bounds)
                for name, runs in systems.items()
            }
            for metric, systems in scored.items()
        }

    def _swaps(self, aligned: Aligned, metric: str) -> dict[str, np.ndarray]:
        """By system, what it has more than the reference when they are swapped, if both have one run."""
        single = {name: runs[0].values[metric] for name, runs in aligned.items() if len(runs) == 1}
        other = single.pop(self.reference, None)
        if other is None or not single:
            return {}
        value_X = list(single.values())
        swap_XD = swap(statistic(metric), value_X, other, self.draws, _rng(aligned, "swap"))
        return {} if swap_XD is None else dict(zip(single, swap_XD, strict=True))

    def task(self, part: _Part) -> TaskCells:
        cells = self.cells({metric: [(part, metric)] for metric in part.runs})
        return TaskCells(*cells, part.kind, part.main, part.items, part.languages)

    def groups(
        self, tasks: Mapping[str, Aligned], parts: Mapping[str, _Part], split: Split
    ) -> dict[Any, GroupCells]:
        """The cells of every language, or length."""
        found: dict[Any, list[_Part]] = {}
        for task, aligned in tasks.items():
            for group, some in split(aligned):
                whole = any_of(some) is any_of(aligned)
                found.setdefault(group, []).append(parts[task] if whole else self.part(some))
        return {
            group: GroupCells(*self.mean(same), len(same), sum(part.items for part in same))
            for group, same in sorted(found.items())
        }

    def mean(self, parts: Sequence[_Part], label: str = SCORE) -> tuple[Metrics, Differences]:
        return self.cells({label: [(part, part.main) for part in parts]})

    def cells(self, labelled: Mapping[str, Sequence[tuple[_Part, str]]]) -> tuple[Metrics, Differences]:
        """Metrics and differences under every label, which stands for a mean of metrics of parts."""
        metrics: Metrics = {}
        differences: Differences = {}
        for label, measured in labelled.items():
            items = sum(part.items for part, _ in measured)
            runs = {
                name: average([part.runs[metric][name] for part, metric in measured])
                for name in self.names
                if all(name in part.runs[metric] for part, metric in measured)
            }
            for name, own in runs.items():
                metrics.setdefault(name, {})[label] = interval(own)
                if name != self.reference and self.reference in runs:
                    swaps = [part.swaps[m][name] for part, m in measured if name in part.swaps[m]]
                    swap_D = np.mean(swaps, axis=0) if len(swaps) == len(measured) else None
                    gap = difference(own, runs[self.reference], items, swap_D, name in self.paired)
                    differences.setdefault(name, {})[label] = gap
        return metrics, differences


def _rng(aligned: Aligned, purpose: str) -> np.random.Generator:
    """The same for the same task, whatever else is compared."""
    return np.random.default_rng([crc32(any_of(aligned).task.encode()), crc32(purpose.encode())])


def _families(result: Comparison) -> Iterator[list[tuple[dict[str, Difference], str]]]:
    """The differences that are looked at together, and among which chance has as many chances."""
    tasks: dict[str, list[tuple[dict[str, Difference], str]]] = {}
    for task in result.tasks.values():
        for cells in task.differences.values():
            for metric in cells:
                tasks.setdefault("" if metric == task.main else metric, []).append((cells, metric))
    yield from tasks.values()
    sections: tuple[Iterable[Cells], ...] = (
        [result.overall],
        result.kinds.values(),
        result.languages.values(),
        result.lengths.values(),
    )
    for section in sections:
        found = [cells for part in section for cells in part.differences.values()]
        yield [(cells, metric) for cells in found for metric in cells]
