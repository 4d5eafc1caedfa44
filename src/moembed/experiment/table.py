"""The finished jobs of an experiment as one result: a comparison, and what every cell costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from moembed.compare import formatting
from moembed.compare.comparison import compare
from moembed.compare.formatting import listing
from moembed.compare.results import SCORE, Comparison, as_json
from moembed.compare.scores import MAIN, Scores, statistic
from moembed.experiment.grid import failures
from moembed.experiment.outcome import Finished, Routing, finished, scores
from moembed.experiment.settings import Job, Plan, variant_name
from moembed.types import UserError

HEAD = ["cell", "seeds", "score", "± seeds", "less the control", "p (Holm)"]
COSTS = [
    "cell",
    "parameters",
    "active",
    "texts/s",
    "memory, training",
    "memory, encoding",
    "training",
    "tokens/s",
]
ROUTING = [
    "cell",
    "router entropy",
    "of at most",
    "share of the chosen",
    "chance",
    "distance of experts",
]


@dataclass(frozen=True, slots=True)
class Compared:
    """Scores of all finished cells.

    Attributes:
        comparison: to the control; None: there are not two cells yet, or the control is not among them.
        spread: by cell, the standard deviation over seeds of the mean over tasks.
    """

    comparison: Comparison | None
    spread: dict[str, float | None]

    def to_json(self) -> dict[str, Any]:
        return {"spread": self.spread, "comparison": self.comparison and as_json(self.comparison)}


@dataclass(frozen=True, slots=True)
class Result:
    """What is known of an experiment so far.

    Attributes:
        finished: by cell (by variant, where a key is tuned), its finished jobs in the order of seeds.
        best: by cell its variant with the highest mean score; the tables are of these.
        means: by variant the mean score of every finished seed.
        full: the scores of whole vectors.
        dims: those of vectors cut to so many coordinates.
        failed: name of a job -> why.
    """

    plan: Plan
    finished: dict[str, list[Finished]]
    best: dict[str, str]
    means: dict[str, list[float]]
    full: Compared
    dims: dict[int, Compared]
    failed: dict[str, str]

    @property
    def comparison(self) -> Comparison | None:
        return self.full.comparison

    @property
    def whole(self) -> bool:
        return self.count == len(self.plan.jobs)

    @property
    def count(self) -> int:
        return sum(map(len, self.finished.values()))

    def to_json(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "name": plan.config.name,
            "question": plan.config.question,
            "control": self.best.get(plan.config.control, plan.config.control),
            "seeds": plan.seeds,
            "jobs": len(plan.jobs),
            "runs": {cell: [job.to_json() for job in jobs] for cell, jobs in self.finished.items()},
            "failed": self.failed,
            "means": self.means,
            "dims": {str(dim): compared.to_json() for dim, compared in self.dims.items()},
            **self.full.to_json(),
        }


def read_result(plan: Plan) -> Result:
    """Everything that is finished, whichever process did it.

    Raises:
        UserError: a finished job of another recipe or of other pairs, scores that do not fit together.
    """
    done: dict[str, list[Finished]] = {}
    ready = []
    for job in plan.jobs:
        if (found := finished(job)) is not None:
            done.setdefault(job.cell, []).append(found)
            ready.append(job)
    _require_same_batches(done)
    scored: dict[str, list[dict[str, Scores]]] = {}
    for job in ready:
        scored.setdefault(job.cell, []).append(scores(job))
    means = {cell: list(map(_mean, runs)) for cell, runs in scored.items()}
    best = _best(plan, means)
    control = best.get(plan.config.control)
    return Result(
        plan=plan,
        finished=done,
        best=best,
        means=means,
        full=_compared(control, done, {cell: scored[cell] for cell in scored if cell in best.values()}),
        dims={
            dim: _compared(
                control, done, {cell: _cut(ready, cell, dim) for cell in scored if cell in best.values()}
            )
            for dim in plan.config.dims
        },
        failed=failures(plan.jobs),
    )


def _best(plan: Plan, means: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """By cell, its variant with the highest mean; the first of equal ones."""
    best: dict[str, str] = {}
    for name, variant in plan.config.variants.items():
        if name in means:
            other = best.setdefault(variant.cell, name)
            if fmean(means[name]) > fmean(means[other]):
                best[variant.cell] = name
    return best


def _cut(ready: Sequence[Job], cell: str, dim: int) -> list[dict[str, Scores]]:
    """The scores of a cell's runs with vectors of so many coordinates."""
    return [scores(job, dim) for job in ready if job.cell == cell]


def _compared(
    control: str | None,
    done: Mapping[str, Sequence[Finished]],
    systems: Mapping[str, list[dict[str, Scores]]],
) -> Compared:
    """Runs of one seed belong together, for they saw the same batches; where both have the same seeds."""
    comparison = None
    if control and len(systems) > 1:
        seeds = {cell: [job.seed for job in done[cell]] for cell in systems}
        paired = [cell for cell in systems if cell != control and seeds[cell] == seeds.get(control)]
        comparison = compare(systems, control, paired=paired)
    return Compared(
        comparison=comparison,
        spread={cell: stdev(map(_mean, runs)) if len(runs) > 1 else None for cell, runs in systems.items()},
    )


def _require_same_batches(done: Mapping[str, Sequence[Finished]]) -> None:
    """The data may have changed between two calls."""
    first: dict[int, Finished] = {}
    for job in (job for jobs in done.values() for job in jobs):
        other = first.setdefault(job.seed, job)
        if job.batches != other.batches:
            raise UserError(
                f"{other.cell} and {job.cell} were trained on other pairs (seed {job.seed}): the data "
                "changed between them; delete the folders of the older ones and start again"
            )


def _mean(run: Mapping[str, Scores]) -> float:
    """The mean of the tasks' main metrics, as `compare` takes it."""
    return fmean(float(statistic(MAIN[task.kind])(task.values[MAIN[task.kind]])) for task in run.values())


# ---- rows, as cells of text --------------------------------------------------------------------------------


def score_rows(result: Result, compared: Compared | None = None) -> list[list[str]]:
    """A row per cell: its score with its interval over queries (and seeds), and what it has more.

    Args:
        compared: one of ``result.dims``; default: whole vectors.
    """
    compared = compared or result.full
    comparison = compared.comparison
    assert comparison is not None
    rows = []
    for cell in _cells(result):
        spread = compared.spread[cell]
        gap = comparison.overall.differences.get(cell, {}).get(SCORE)
        rows.append(
            [
                cell,
                f"{len(result.finished[cell])} of {result.plan.seeds}",
                formatting.estimate(comparison.overall.metrics[cell][SCORE]),
                "" if spread is None else formatting.decimal(spread),
                "the control" if gap is None else formatting.difference(gap),
                "" if gap is None else formatting.p_value(gap.p_holm),
            ]
        )
    return rows


def task_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a row per task, its main metric by cell."""
    comparison = result.comparison
    assert comparison is not None
    cells = [cell for cell in _cells(result) if cell in comparison.systems]
    rows = [
        [
            name,
            formatting.metric_name(task.main),
            f"{task.items:,}",
            *(formatting.estimate(task.metrics[cell][task.main]) for cell in cells),
        ]
        for name, task in comparison.tasks.items()
    ]
    return ["task", "metric", "items", *cells], rows


def tuned_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a row per cell, its mean ± standard deviation over seeds at every value of ``tune``."""
    config = result.plan.config
    ((key, values),) = config.tune.items()
    rows = [
        [cell, *(_tuned(result, cell, variant_name(cell, value)) for value in values)]
        for cell in config.cells
    ]
    return [f"cell, by {key}", *(f"{value:g}" for value in values)], rows


def at_the_edge(result: Result) -> str:
    """A sentence on the cells whose best value is the largest or the smallest that was tried; "": none."""
    ((key, values),) = result.plan.config.tune.items()
    ends = {min(values), max(values)}
    found = [
        name for cell, name in result.best.items() if name in {variant_name(cell, value) for value in ends}
    ]
    if not found:
        return ""
    return f"At the edge of what was tried, so that another {key} may be better still: {listing(found)}."


def _tuned(result: Result, cell: str, variant: str) -> str:
    runs = result.means.get(variant, [])
    if not runs:
        return ""
    told = formatting.decimal(fmean(runs)) + (
        f" ± {formatting.decimal(stdev(runs))}" if len(runs) > 1 else ""
    )
    return f"{told}, best" if result.best[cell] == variant else told


def cost_rows(result: Result) -> list[list[str]]:
    return [[cell, *_cost(result.finished[cell])] for cell in _cells(result)]


def _cost(jobs: Sequence[Finished]) -> list[str]:
    rates = [job.encode_rate for job in jobs if job.encode_rate]
    encoding = [job.encode_bytes for job in jobs if job.encode_bytes]
    trained = [job.train_tokens / job.train_seconds for job in jobs if job.train_tokens and job.train_seconds]
    return [
        formatting.count(jobs[0].parameters),
        formatting.count(jobs[0].active_parameters),
        f"{fmean(rates):.0f}" if rates else "",
        formatting.size(max(job.train_bytes for job in jobs)),
        formatting.size(max(encoding)) if encoding else "",
        formatting.duration(fmean(job.train_seconds for job in jobs)),
        f"{fmean(trained):,.0f}" if trained else "",
    ]


def routing_rows(result: Result) -> list[list[str]]:
    """A row per cell with experts: how its routers and experts moved, as means over seeds."""
    rows = []
    for cell in _cells(result):
        found = [job.routing for job in result.finished[cell] if job.routing]
        if found:
            rows.append([cell, *_moved(found)])
    return rows


def _moved(found: Sequence[Routing]) -> list[str]:
    def way(pairs: Sequence[tuple[float, float]]) -> str:
        return " → ".join(formatting.decimal(fmean(values)) for values in zip(*pairs, strict=True))

    return [
        way([routing.entropy for routing in found]),
        formatting.decimal(found[0].highest),
        way([routing.share for routing in found]),
        formatting.decimal(found[0].chance),
        formatting.decimal(fmean(routing.distance for routing in found)),
    ]


def _cells(result: Result) -> list[str]:
    """The finished cells in the order of the file, where a key is tuned the best variant of each."""
    return [result.best[cell] for cell in result.plan.config.cells if cell in result.best]
