"""Work through the jobs of an experiment: train, evaluate, keep, whatever process does which of them."""

from __future__ import annotations

import gc
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from moembed.compare.formatting import duration
from moembed.compare.scores import save_scores
from moembed.console import progress_bar, say
from moembed.evaluation.files import Task
from moembed.experiment.batches import BatchOrder
from moembed.experiment.budget import Budget
from moembed.experiment.outcome import FAILED, RESULT, SCORES, Finished, finished, read_routing, scores_file
from moembed.experiment.settings import Job, Plan
from moembed.files import InUseError, locked, read_json, write_json
from moembed.folder.bases import locate_base
from moembed.machine import made
from moembed.runs.bench import forget_peak, resident_memory
from moembed.runs.evaluated import load_tasks, sample_tasks
from moembed.runs.system import EvaluationOptions, evaluate_system
from moembed.runs.train import train
from moembed.training.checkpoint import latest
from moembed.training.log import read_metrics
from moembed.training.memory import trim_heap_now
from moembed.types import UserError


@dataclass(slots=True)
class Progress:
    """What became of the jobs of this call."""

    done: list[Job] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # name of a job -> why
    elsewhere: list[Job] = field(default_factory=list)  # in the hands of another process
    stopped: bool = False


def run_jobs(plan: Plan, budget: Budget) -> Progress:
    """Do every job that is not done, in order, until the budget is over; a job that fails is recorded.

    A job that another process works on is left to it. A training that was stopped goes on where it was.

    Raises:
        UserError: there is no base, tasks that cannot be read, cells that see other pairs, a finished job of
            another recipe.
    """
    progress = Progress()
    # ---- what cannot be compared is refused before anything is trained
    done = {(job.cell, job.seed) for job in plan.jobs if finished(job)}
    todo = [job for job in plan.chosen if (job.cell, job.seed) not in done]
    if not todo:
        return progress
    _require_a_base(todo)
    options = EvaluationOptions(sample=plan.config.sample, dims=plan.config.dims, baselines=False)
    tasks = load_tasks(plan.config.tasks, options)
    if plan.config.sample:
        tasks = sample_tasks(tasks, plan.config.sample, None)
    order = BatchOrder()
    order.require_equal(plan.jobs)

    # ---- one job after the other
    for number, job in enumerate(todo, start=1):
        if budget.over:
            progress.stopped = True
            break
        name = f"{job.cell}, seed {job.seed}"
        with _mine(job, progress) as mine:
            if not mine or finished(job) is not None:
                continue
            say(f"---- {number} of {len(todo)}: {name}")
            start = time.monotonic()
            try:
                whole = _do(job, plan, tasks, options, order)
            except Exception as error:  # whatever it is, the other cells are not to blame
                progress.failed[name] = _record(job, error)
                say(f"{name} failed: {progress.failed[name]}; the grid goes on")
                continue
            if not whole:
                progress.stopped = True
                break
            progress.done.append(job)
            say(f"{name}: done in {duration(time.monotonic() - start)}")
    return progress


def _require_a_base(jobs: Sequence[Job]) -> None:
    """
    Raises:
        UserError: no base of any job can be had, so that all of them would fail one after the other.
    """
    error: UserError | None = None
    for base, revision, allow_pickle in {
        (job.config.base, job.config.revision, job.config.allow_pickle): None for job in jobs
    }:
        try:
            locate_base(base, revision, allow_pickle)
        except UserError as found:
            error = error or found
        else:
            return
    if error:
        raise error


@contextmanager
def _mine(job: Job, progress: Progress) -> Iterator[bool]:
    """Whether no other process works on the job; none will while the block lasts."""
    held = locked(job.folder)
    try:
        held.__enter__()
    except InUseError:
        progress.elsewhere.append(job)
        yield False
        return
    try:
        yield True
    finally:
        held.__exit__(None, None, None)


def _do(job: Job, plan: Plan, tasks: Sequence[Task], options: EvaluationOptions, order: BatchOrder) -> bool:
    """Train and evaluate; False: the training was stopped and can go on."""
    # ---- training, from the newest checkpoint if there is one
    run = job.folder / "run"
    (job.folder / FAILED).unlink(missing_ok=True)
    _forget_memory()
    resume = latest(run) is not None
    trained = train(job.config, resume=resume, overwrite=run.exists() and not resume)
    if trained.stopped_by_user:
        return False
    train_bytes = resident_memory(peak=True)
    _forget_memory()

    # ---- evaluation, of what was written
    start = time.monotonic()
    model = run / "model"
    outcome = evaluate_system(job.cell, model, tasks, options, progress_bar)
    cost = outcome.cost
    about = {"system": job.cell, "seed": job.seed, **outcome.about}
    save_scores(job.folder / SCORES, list(outcome.scores.values()), about)
    for (dim, _), found in outcome.sizes.items():
        save_scores(job.folder / scores_file(dim), list(found.values()), about | {"dim": dim})

    # ---- the result is written last: a job that has one is whole
    result = Finished(
        cell=job.cell,
        seed=job.seed,
        recipe=job.recipe,
        evaluation=job.evaluation,
        batches=order.of(job.config),
        steps=trained.steps,
        train_seconds=trained.seconds,
        evaluate_seconds=time.monotonic() - start,
        parameters=cost.parameters or 0,
        active_parameters=cost.active_parameters or 0,
        encode_rate=cost.texts_per_second,
        train_bytes=train_bytes,
        encode_bytes=cost.peak_memory_bytes,
        routing=read_routing(run),
        train_tokens=sum(int(line["tokens"]) for line in read_metrics(run / "metrics.jsonl")),
        made=made(),
    )
    write_json(job.folder / RESULT, result.to_json())
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    if not plan.config.keep_models:
        shutil.rmtree(model, ignore_errors=True)
    return True


def _forget_memory() -> None:
    """What came before is not to count: neither what Python and the C library still hold, nor the peak."""
    gc.collect()
    trim_heap_now()
    forget_peak()


def _record(job: Job, error: Exception) -> str:
    """Write down why a job failed; returns the sentence."""
    said = (
        str(error)
        if isinstance(error, UserError)
        else f"{type(error).__name__}: {' '.join(str(error).split())}"
    )
    facts = {"cell": job.cell, "seed": job.seed, "error": said}
    if not isinstance(error, UserError):
        facts["traceback"] = traceback.format_exc()
    write_json(job.folder / FAILED, facts)
    return said


def failures(jobs: Sequence[Job]) -> dict[str, str]:
    """Name of a job -> why it failed when it was last tried."""
    found: dict[str, str] = {}
    for job in jobs:
        file: Path = job.folder / FAILED
        if file.exists() and not (job.folder / RESULT).exists():
            found[f"{job.cell}, seed {job.seed}"] = str(read_json(file).get("error", "unknown"))
    return found
