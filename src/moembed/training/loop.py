"""The training loop: batch, backward, clip, learning rate, AdamW, and then whoever looks. It knows no task.

``batch(step)`` is a function of (seed, step), so a resumed run seeks and goes on as if it had never stopped;
and it is the global batch, so several processes do together what one would do alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moembed.config import Strict
from moembed.files import write_text
from moembed.training.checkpoint import Checkpoints, State, last_good, latest
from moembed.training.interrupt import interruptible
from moembed.training.log import Log
from moembed.training.optim import adamw, clip_gradients, set_learning_rate
from moembed.training.parallel import current
from moembed.training.prefetch import prefetch
from moembed.training.settings import Length, LoopConfig
from moembed.training.task import Look, Moment, Monitor, Task
from moembed.types import UserError


@dataclass(frozen=True, slots=True)
class Trained:
    """How a run ended."""

    steps: int
    seconds: float
    pairs: int
    truncated: int
    stopped_by_user: bool


def run_loop(
    task: Task[Any], monitors: Sequence[Monitor], config: LoopConfig, length: Length, run: Path,
    resume: bool = False, record: Strict | None = None, make_folder: Callable[[], object] | None = None,
) -> Trained:  # fmt: skip
    """Train ``task``; ``run`` gets ``metrics.jsonl``, ``checkpoints/`` and at the end ``model/``.

    Args:
        monitors: asked in their order, after every step.
        record: the whole resolved recipe, saved beside the checkpoints; default: ``config``.
        make_folder: makes ``run`` when nothing was refused, so that no earlier one gives way to a mistake.

    Raises:
        UserError: a loss or weights that are not finite (the batch is written to the run folder), nothing to
            resume from, another run in the way, other data than before, a full disk.
    """
    # ---- what outlives a step: fresh, or as the newest checkpoint has it
    world = current()
    torch.manual_seed(config.seed + world.rank)
    optimiser = adamw(task.module, config.optim)
    states = {**task.states(), **{monitor.name: monitor for monitor in monitors}}
    recipe, keep = record or config, config.keep_checkpoints
    checkpoints = Checkpoints(run, task, optimiser, states, recipe, keep, world)
    state = State(data=task.contents() if world.first else {})
    with world.first_ahead():
        if make_folder and world.first:
            make_folder()
    if resume:
        state = checkpoints.restore(state.data)
    elif found := latest(run):
        raise UserError(f"{found} is there already; resume that run, or train into another folder")
    task.module.train()

    with (
        interruptible(patient=world.size > 1) as interrupt,
        Log(run, length, state.step, resume, silent=not world.first) as log,
        prefetch(task.batch, task.workers, length.steps) as batches,
    ):
        entries: dict[str, Any] = {}
        for monitor in monitors:
            entries |= _heed(monitor.begin(state.step), state.step, checkpoints, log)
        started, before = time.monotonic(), state.seconds
        while not world.any(interrupt.asked):
            progress = length.progress(state.step, state.seconds)
            if progress >= 1:
                break

            # ---- one step
            batch = batches(state.step)
            terms = task.backward(state.step, batch)
            norm = clip_gradients(task.module, config.optim)
            _require_finite(task, batch, (terms.loss, norm), state.step, run)
            rate = set_learning_rate(optimiser, config.optim, state.step, progress)
            optimiser.step()
            optimiser.zero_grad()
            entries |= {"learning_rate": rate, "grad_norm": norm, **task.update(terms)}

            # ---- look at it, write it down
            seconds = world.broadcast(before + time.monotonic() - started)
            last = length.progress(state.step + 1, seconds) >= 1
            moment = Moment(state.step + 1, state.seconds, last, terms)
            for monitor in monitors:
                if monitor.due(moment):
                    entries |= _heed(monitor.look(moment), moment.step, checkpoints, log)
            state = State(
                moment.step, seconds, state.pairs + terms.pairs, state.truncated + terms.truncated, state.data
            )
            log.step(state.step, state.seconds, terms, entries)
            entries = {}
            if state.step % config.save_every == 0:
                checkpoints.save(state)
        if state.step and state.step % config.save_every:
            checkpoints.save(state)

    # ---- the model; `save` has just seen that it is whole
    task.module.eval()
    if world.first:
        task.write(run / "model")
    return Trained(state.step, state.seconds, state.pairs, state.truncated, interrupt.asked)


def _heed(look: Look, step: int, checkpoints: Checkpoints, log: Log) -> dict[str, Any]:
    """Do what a look asks for; returns its entries of the log."""
    if look.best:
        checkpoints.save_best(step, *look.best)
    for sentence in look.sentences:
        log.say(sentence)
    return dict(look.log)


def _require_finite(task: Task[Any], batch: Any, values: tuple[float, float], step: int, run: Path) -> None:
    if all(math.isfinite(value) for value in values):
        return
    file = run / "offending-batch.jsonl"
    lines = (json.dumps(row, ensure_ascii=False) for row in task.examples(batch))
    write_text(file, "".join(line + "\n" for line in lines))
    raise UserError(
        f"the loss or its gradient is not finite at step {step + 1}; the batch is in {file}, "
        f"{last_good(run)}; try a lower optim.learning_rate or precision=float32"
    )
