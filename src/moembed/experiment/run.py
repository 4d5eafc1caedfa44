"""`moembed experiment`: do what is left of a grid, and write down what is known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import yaml

from moembed.compare.formatting import listing, plural
from moembed.console import say
from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import PairTask, Task
from moembed.experiment.batches import BatchOrder
from moembed.experiment.budget import budget
from moembed.experiment.grid import Progress, failures, run_jobs
from moembed.experiment.outcome import Finished, finished
from moembed.experiment.record import write_record
from moembed.experiment.settings import Job, Plan, read_plan, same_in_all_seeds
from moembed.experiment.table import Result, read_result
from moembed.machine import best_dtype
from moembed.report.plots import require_matplotlib
from moembed.runs.evaluated import load_tasks, sample_tasks
from moembed.runs.system import EvaluationOptions, num_texts
from moembed.runs.train import train
from moembed.training.log import read_metrics

_STEPS, _TEXTS = 3, 64  # that a dry run times


def run_experiment(
    file: Path,
    overrides: Sequence[str] = (),
    *,
    seeds: int = 3,
    minutes: float | None = None,
    only: Sequence[str] = (),
    record: Path | None = None,
) -> Result:
    """Do the jobs that are not done yet, then write the record of all that are.

    Args:
        overrides: ``key=value`` for the experiment file, such as ``recipe.steps=20``.
        minutes: after which training stops where it can go on; None: when all is done.
        only: cells to run; none: all. The record is of all cells in any case.
        record: the Markdown file; None: ``records/NAME.md``.

    Raises:
        UserError: what `read_plan` and `run_jobs` refuse.
    """
    require_matplotlib()
    plan = read_plan(file, overrides, seeds, only)
    for sentence in same_in_all_seeds(plan):
        say(sentence)
    with budget(minutes) as state:
        progress = run_jobs(plan, state)
    result = read_result(plan)
    if result.finished:
        place = record or Path("records") / f"{plan.config.name}.md"
        written = write_record(place, file, overrides, result)
        say(f"{result.count} of {len(plan.jobs)} runs are finished; the record is in {written[0]}")
    for sentence in _ending(progress, plan):
        say(sentence)
    return result


def _ending(progress: Progress, plan: Plan) -> list[str]:
    """What is not done, and how to go on."""
    told = []
    if progress.elsewhere:
        names = listing([f"{job.cell}, seed {job.seed}" for job in progress.elsewhere])
        told.append(f"another process works on {names}: the same command, later, puts them into the record")
    if progress.stopped:
        told.append(f"stopped early; {plan.config.folder} keeps what is done, the same command goes on")
    if progress.failed:
        count, names = plural(len(progress.failed), "run"), listing(list(progress.failed))
        told.append(
            f"{count} failed ({names}); failed.json in the folder of each says why, and the same command "
            "tries again"
        )
    return told


# ---- before anything is trained ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a cell still has to do; ``seconds`` of one run, trained and evaluated."""

    cell: str
    changes: str
    steps: int
    done: int
    failed: int
    left: int
    seconds: float


def forecast(
    file: Path, overrides: Sequence[str] = (), *, seeds: int = 3, only: Sequence[str] = ()
) -> tuple[list[Forecast], str]:
    """The cells, what is left of them, and a sentence that says where the estimate of the time comes from.

    A cell that has finished runs takes as long as these did; another one as long as those of all cells; if
    there is none, a few steps of the first are timed.

    Raises:
        UserError: as `run_experiment`, so that a dry run finds what a run would refuse.
    """
    plan = read_plan(file, overrides, seeds, only)
    for sentence in same_in_all_seeds(plan):
        say(sentence)
    options = EvaluationOptions(sample=plan.config.sample, baselines=False)
    tasks = load_tasks(plan.config.tasks, options)
    if plan.config.sample:
        tasks = sample_tasks(tasks, plan.config.sample, None)
    BatchOrder().require_equal(plan.jobs)

    known = {(job.cell, job.seed): found for job in plan.jobs if (found := finished(job))}
    if known:
        common = fmean(map(_took, known.values()))
        source = "the time is that of the runs that are finished"
    else:
        common = _timed(plan.chosen[0], tasks)
        source = (
            f"the time is that of {_STEPS - 1} steps and {_TEXTS} texts of {plan.chosen[0].cell}, which were "
            "timed; cells that compute more take longer"
        )
    rows = []
    for cell in dict.fromkeys(job.cell for job in plan.chosen):
        jobs = plan.of(cell)
        own = [_took(known[cell, job.seed]) for job in jobs if (cell, job.seed) in known]
        changes = plan.config.variants[cell].changes
        rows.append(
            Forecast(
                cell=cell,
                changes=" ".join(f"{key}={_shown(value)}" for key, value in changes.items())
                or "the recipe as it is",
                steps=jobs[0].config.steps or 0,
                done=len(own),
                failed=len(failures(jobs)),
                left=len(jobs) - len(own),
                seconds=fmean(own) if own else common,
            )
        )
    return rows, source


def _shown(value: object) -> str:
    """A value as a recipe has it, on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def _took(job: Finished) -> float:
    return job.train_seconds + job.evaluate_seconds


def _timed(job: Job, tasks: Sequence[Task]) -> float:
    """Seconds that a run of the job would take, from a few steps and texts."""
    assert job.config.steps is not None
    with TemporaryDirectory() as place:
        run = Path(place) / "run"
        train(job.config.model_copy(update={"steps": _STEPS, "out": str(run)}))
        elapsed = [float(line["elapsed"]) for line in read_metrics(run / "metrics.jsonl")]
        step = (elapsed[-1] - elapsed[0]) / max(1, len(elapsed) - 1)
        model = Embedder.from_pretrained(run / "model", dtype=best_dtype())
        texts = _some_texts(tasks[0])
        start = time.perf_counter()
        model.encode(texts)
        text = (time.perf_counter() - start) / len(texts)
    return job.config.steps * step + sum(map(num_texts, tasks)) * text


def _some_texts(task: Task) -> list[str]:
    if isinstance(task, RetrievalTask):
        return task.documents[:_TEXTS]
    return list((task.sentence1 if isinstance(task, PairTask) else task.texts)[:_TEXTS])
