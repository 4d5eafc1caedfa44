"""Training of a reranker on sources: the task, what looks at it, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from moembed.config import Strict
from moembed.console import say
from moembed.data.sources import Source
from moembed.reranker import Reranker
from moembed.training.contrastive.train import none_held_out
from moembed.training.loop import Trained, run_loop
from moembed.training.monitors.dead_experts import DeadExpertAlarm
from moembed.training.parallel import current
from moembed.training.reranking.held_out import HeldOutLists
from moembed.training.reranking.settings import RerankingConfig
from moembed.training.reranking.task import RerankingTask
from moembed.training.settings import Length
from moembed.training.task import Monitor


def train_reranking(
    config: RerankingConfig, model: Reranker, sources: Sequence[Source], weights: Sequence[float], run: Path,
    resume: bool = False, record: Strict | None = None, make_folder: Callable[[], object] | None = None,
) -> Trained:  # fmt: skip
    """Train ``model`` in place; ``run`` gets ``metrics.jsonl``, ``checkpoints/`` and at the end ``model/``.

    Args:
        weights: relative number of batches of each source.
        record: the whole resolved recipe, saved beside the checkpoints; default: ``config``.
        make_folder: see `moembed.training.loop.run_loop`.

    Raises:
        UserError: fewer pairs than a batch, a source without negatives, and what `run_loop` refuses.
    """
    task = RerankingTask(config, model, sources, weights, current())
    notes = [adapters.sentence for adapters in task.adapters.values()]
    notes += none_held_out(config.held_out, map(len, sources), task.sizes, task.names)
    for note in notes if current().first else ():
        say(note)
    alarm = DeadExpertAlarm("raise loss.balance or set loss.bias_rate")
    monitors: list[Monitor] = [HeldOutLists(task), alarm]
    length = Length(task.steps, config.minutes)
    return run_loop(task, monitors, config, length, run, resume, record, make_folder)
