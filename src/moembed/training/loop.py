"""The training loop, from sources to checkpoints, in the order things happen.

Feed: Sampler.batch(step) -> pairs -> prepare -> gradcache.backward -> clip, AdamW, balance, log, save.

``batch(step)`` is a function of (seed, step), so a resumed run seeks and goes on as if it had never stopped;
and it is the global batch, so several processes do together what one would do alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moembed.config import Strict
from moembed.console import say
from moembed.data.sampler import Sampler
from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask
from moembed.machine import choose_precision
from moembed.training import checkpoint, gradcache
from moembed.training.ahead import ahead
from moembed.training.distributed import current
from moembed.training.evaluation import Evaluation, load_tasks
from moembed.training.held_out import HeldOut, learnt
from moembed.training.interrupt import interruptible
from moembed.training.log import Log
from moembed.training.optim import adamw, learning_rate
from moembed.training.routing import Balance, Starving, Watch
from moembed.training.settings import SourceOptions, TrainConfig
from moembed.training.step import Feed, Manner, Objective
from moembed.types import Batch, Encoded, Pair, UserError

NAMED = 3  # sources whose leftovers are said one by one


@dataclass(frozen=True, slots=True)
class Trained:
    """How a run ended."""

    steps: int
    seconds: float
    pairs: int
    truncated: int
    stopped_by_user: bool


def train(
    config: TrainConfig, model: Embedder, sources: Sequence[Source], weights: Sequence[float], run: Path,
    resume: bool = False, record: Strict | None = None, options: Sequence[SourceOptions] | None = None,
    validation: Sequence[Source] = (), tasks: Sequence[RetrievalTask] | None = None,
) -> Trained:  # fmt: skip
    """Train ``model`` in place; ``run`` gets ``metrics.jsonl``, ``checkpoints/`` and at the end ``model/``.

    Args:
        record: the whole resolved recipe, saved beside the checkpoints; default: ``config``.
        options: of each source, its own prompts and loss.
        validation: sources for the held-out loss alone.
        tasks: those of ``config.evaluate``, where they were read before.

    Raises:
        UserError: fewer pairs than a batch, a loss that is not finite (the batch is written to the run
            folder), nothing to resume from, another run in the way, a task folder that is missing or changed,
            a full disk.
    """
    world = current()
    if config.batch_size < world.size:
        raise UserError(
            f"batch_size {config.batch_size} is less than one pair for each of {world.size} processes"
        )
    names, sizes = [source.name for source in sources], [learnt(source, config) for source in sources]
    manners = [
        Manner.of(model, option, config.loss) for option in options or [SourceOptions()] * len(sources)
    ]
    held_out = HeldOut(config)
    for source, size, manner in zip(sources, sizes, manners, strict=True):
        held_out.add(source, range(size, len(source)), manner, model)
    for source in validation:
        held_out.add(source, range(len(source)), Manner.of(model, SourceOptions(), config.loss), model)
    sampler = Sampler(sizes, weights, config.batch_size, config.seed, names)
    last_step = _last_step(config, sampler)
    tasks = load_tasks(config.evaluate) if tasks is None else tasks
    evaluation = Evaluation(config, tasks, model, world) if config.evaluate else None

    objective, balance, starving = Objective(config.loss, model), Balance(config.loss, model), Starving()
    optimiser = adamw(model, config.optim, objective)
    parameters = [*model.parameters(), *objective.parameters()]
    precision = choose_precision(config.precision, model.device)
    embed = partial(_embed, model=model, precision=precision, depths=list(objective.depths))
    model.encoder.activation_checkpointing = config.activation_checkpointing
    torch.manual_seed(config.seed + world.rank)
    step, before, seen, truncated = 0, 0.0, 0, 0
    extras: dict[str, checkpoint.Stateful] = {
        "objective": objective, "balance": balance, "starving": starving, "held_out": held_out
    }  # fmt: skip
    if evaluation:
        extras["evaluation"] = evaluation
    data = contents(sources, validation) if world.first else {}
    if resume:
        state = checkpoint.restore(run, model, optimiser, record or config, extras, world, data)
        step, before, seen, truncated = state.step, state.seconds, state.pairs, state.truncated
    elif found := checkpoint.latest(run):
        raise UserError(f"{found} is there already; resume that run, or train into another folder")
    model.train()
    if evaluation and not resume:
        evaluation.plan()
    started = time.monotonic()
    seconds = before

    def save() -> None:
        checkpoint.require_finite(run, step, model, objective)
        random = world.collect(checkpoint.random_state())
        if world.first:
            state, keep = checkpoint.State(step, seconds, seen, truncated, data), config.keep_checkpoints
            checkpoint.save(run, model, optimiser, state, record or config, keep, extras, random)

    def keep_best(measure: str, value: float) -> None:
        checkpoint.require_finite(run, step, model, objective)
        if world.first:
            checkpoint.save_best(run, model, step, measure, value)

    if world.first:
        for sentence in leftovers(sizes, names, config.batch_size):
            say(sentence)
    feed = Feed(sampler, sources, manners, model.tokenizer, config, world)
    with (
        interruptible(patient=world.size > 1) as interrupt,
        Log(run, last_step, config.minutes, step, resume, silent=not world.first) as log,
        ahead(feed, config.workers, last_step) as batches,
    ):
        if evaluation:
            log.say(evaluation.describe())
        while not world.any(interrupt.asked) and (last_step is None or step < last_step):
            seconds = world.agree(seconds)
            progress = step / last_step if last_step else seconds / (60 * config.minutes)  # type: ignore[operator]
            if progress >= 1:
                break

            # ---- one step ----------------------------------------------------------------------------
            batch = batches(step)
            watch = None
            if balance.routers and step % config.diagnose_every == 0:
                watch = Watch(model, batch.groups, batch.chunks.batches, batch.group_CB)
            terms = gradcache.backward(
                embed, batch.chunks, partial(objective, batch=batch), balance.loss, world,
                watch or gradcache.unobserved,
            )  # fmt: skip
            world.sum_gradients(parameters)
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip or math.inf)
            _refuse_non_finite(terms, norm, step, batch.pairs, run)
            rate = learning_rate(config.optim, step, progress)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad()
            objective.clamp()
            balance.update(terms.stats)
            # ------------------------------------------------------------------------------------------

            step, seen = step + 1, seen + len(batch.pairs)
            tokens, cut = world.sum(torch.tensor([batch.tokens, batch.truncated])).tolist()
            truncated += cut
            more: dict[str, Any] = watch.summary(world) if watch else {}
            if config.loss.learn_temperature:
                more["temperature"] = torch.as_tensor(objective.temperature).item()
            if held_out.batches and (step % config.evaluate_every == 0 or step == last_step):
                more["held_out"] = held_out.losses(model, embed, objective, world)
                more["held_out_loss"] = held_out.mean(more["held_out"])
                if held_out.improves(more["held_out_loss"]) and not evaluation:
                    keep_best("held_out_loss", more["held_out_loss"])
            if evaluation and evaluation.due(step, seconds, step == last_step):
                more |= evaluation.look(seconds)
                better = evaluation.improves(more["evaluation_mean"])
                if better:
                    keep_best(more["evaluation_metric"], more["evaluation_mean"])
                log.say(evaluation.sentence(step, more, better))
            seconds = before + time.monotonic() - started
            log.step(
                step=step, elapsed=seconds, loss=terms.contrastive + terms.router, info_nce=terms.contrastive,
                router_loss=terms.router, learning_rate=rate, grad_norm=float(norm), pairs=len(batch.pairs),
                tokens=tokens, truncated=cut, same_negatives=batch.same, source=names[batch.source],
                router=[part.summary() for part in terms.stats], **more,
            )  # fmt: skip
            for sentence in starving.update(terms.stats):
                log.say(f"warning: {sentence}")
            if step % config.save_every == 0:
                save()
        if step and step % config.save_every:
            save()
    model.eval()
    if world.first:
        model.save_pretrained(run / "model")
    return Trained(step, seconds, seen, truncated, interrupt.asked)


def _embed(chunk: Batch, model: Embedder, precision: torch.dtype, depths: Sequence[int]) -> Encoded:
    with torch.autocast(model.device.split(":")[0], precision, enabled=precision != torch.float32):
        return model(chunk.to(model.device), depths)


def contents(sources: Sequence[Source], validation: Sequence[Source] = ()) -> dict[str, str]:
    """What every source holds, for a resumed run to compare with."""
    found: dict[str, str] = {}
    for where, some in (("", sources), ("validation ", validation)):
        for source in some:
            name, number = f"{where}{source.name}", 2
            while name in found:  # two sources may be called the same
                name, number = f"{where}{source.name} ({number})", number + 1
            found[name] = source.fingerprint()
    return found


def leftovers(sizes: Sequence[int], names: Sequence[str], batch_size: int) -> list[str]:
    """What every epoch leaves out of each source, because batches are full."""
    tails = [(size % batch_size, size, name) for size, name in zip(sizes, names, strict=True)]
    tails = sorted((tail for tail in tails if tail[0]), reverse=True)
    said = [
        f"{tail:,} of the {size:,} pairs of {name} are left over in every epoch, other ones each time: every "
        f"batch has {batch_size} pairs of one source"
        for tail, size, name in tails[:NAMED]
    ]
    if rest := tails[NAMED:]:
        said.append(f"so are {sum(tail for tail, *_ in rest):,} pairs of {len(rest)} other sources")
    return said


def _last_step(config: TrainConfig, sampler: Sampler) -> int | None:
    if config.epochs is not None:
        return max(1, round(config.epochs * sampler.total_steps))
    return config.steps


def _refuse_non_finite(
    terms: gradcache.Terms, norm: Tensor, step: int, pairs: Sequence[Pair], run: Path
) -> None:
    if math.isfinite(terms.contrastive) and math.isfinite(terms.router) and bool(torch.isfinite(norm)):
        return
    file = run / "offending-batch.jsonl"
    file.write_text("".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs), "utf-8")
    raise UserError(
        f"the loss or its gradient is not finite at step {step + 1}; the batch is in {file}, "
        f"{checkpoint.last_good(run)}; try a lower optim.learning_rate or precision=float32"
    )
