"""Contrastive training of a model on sources: the task, what looks at it, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from moembed.config import Strict
from moembed.console import say
from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask
from moembed.training.contrastive.held_out import HeldOutLoss
from moembed.training.contrastive.settings import ContrastiveConfig
from moembed.training.contrastive.task import ContrastiveTask, Mixture
from moembed.training.loop import Trained, run_loop
from moembed.training.monitors.dead_experts import DeadExpertAlarm
from moembed.training.monitors.retrieval import RetrievalMonitor, load_tasks
from moembed.training.parallel import current
from moembed.training.settings import Length
from moembed.training.task import Monitor

NAMED = 3  # sources whose leftovers are said one by one


def train_contrastive(
    config: ContrastiveConfig, model: Embedder, mixture: Mixture, run: Path, resume: bool = False,
    record: Strict | None = None, tasks: Sequence[RetrievalTask] | None = None,
    make_folder: Callable[[], object] | None = None,
) -> Trained:  # fmt: skip
    """Train ``model`` in place; ``run`` gets ``metrics.jsonl``, ``checkpoints/`` and at the end ``model/``.

    Args:
        record: the whole resolved recipe, saved beside the checkpoints; default: ``config``.
        make_folder: see `moembed.training.loop.run_loop`.
        tasks: those of ``config.evaluate``, where they were read before.

    Raises:
        UserError: fewer pairs than a batch, a task folder that is missing or changed, and what `run_loop`
            refuses.
    """
    world = current()
    task = ContrastiveTask(config, model, mixture, world)
    monitors: list[Monitor] = [task.probe, HeldOutLoss(task, chooses=config.evaluate is None)]
    if config.evaluate:
        found = load_tasks(config.evaluate) if tasks is None else tasks
        # a GPU has room for as much as training takes at a time; None: the budget that suits a CPU
        chunk = None if model.device == "cpu" else config.chunk_tokens
        monitors.append(RetrievalMonitor(config.evaluate, config, found, model, world, chunk))
    monitors.append(DeadExpertAlarm("raise loss.balance or set loss.bias_rate"))
    if world.first:
        for sentence in opening_notes(task):
            say(sentence)
    length = Length(task.steps, config.minutes)
    return run_loop(task, monitors, config, length, run, resume, record, make_folder)


def opening_notes(task: ContrastiveTask) -> list[str]:
    """What is said of the sources before the first step."""
    tagged = zip(task.names, task.tags, strict=True)
    notes = [f"note: {name}: {note}" for name, tags in tagged if tags for note in tags.notes]
    left = leftovers(task.sizes, task.names, task.config.batch_size)
    lengths = map(len, task.mixture.sources)
    return [*left, *none_held_out(task.config.held_out, lengths, task.sizes, task.names), *notes, *task.notes]


def none_held_out(
    share: float, lengths: Iterable[int], sizes: Sequence[int], names: Sequence[str]
) -> list[str]:
    """What is said of sources so small that a share of them is no row."""
    found = [name for length, size, name in zip(lengths, sizes, names, strict=True) if size == length]
    if not share or not found:
        return []
    more = f" and of {len(found) - 1} more" if len(found) > 1 else ""
    return [f"held_out {share:g} is less than one pair of {found[0]}{more}: none of them is held out"]


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
