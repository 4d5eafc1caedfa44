"""Masked language modelling: from texts to an encoder that knows their languages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from moembed.config import Strict
from moembed.console import say
from moembed.embedder import Embedder
from moembed.training.loop import Trained, run_loop
from moembed.training.masked_lm.corpus import Language
from moembed.training.masked_lm.heads import Heads, write_heads
from moembed.training.masked_lm.held_out import HeldOutGuesses
from moembed.training.masked_lm.settings import MaskedLMConfig
from moembed.training.masked_lm.task import MaskedLMTask
from moembed.training.monitors.dead_experts import DeadExpertAlarm
from moembed.training.parallel import current
from moembed.training.settings import Length
from moembed.training.task import Monitor


def train_masked_lm(
    config: MaskedLMConfig, model: Embedder, heads: Heads, corpus: Sequence[Language], run: Path,
    resume: bool = False, record: Strict | None = None, make_folder: Callable[[], object] | None = None,
) -> Trained:  # fmt: skip
    """Train ``model`` in place; ``run`` gets metrics, checkpoints, ``model/`` and ``mlm_head.safetensors``.

    Args:
        record: the whole resolved recipe, saved beside the checkpoints; default: ``config``.
        make_folder: see `moembed.training.loop.run_loop`.

    Raises:
        UserError: a language with fewer sequences than a batch, no mask token, and what `run_loop` refuses.
    """
    world = current()
    task = MaskedLMTask(config, model, heads, corpus, world)
    for adapters in task.adapters.values():
        say(adapters.sentence)
    monitors: list[Monitor] = [HeldOutGuesses(task), DeadExpertAlarm("raise router.balance")]
    trained = run_loop(task, monitors, config, Length(config.steps), run, resume, record, make_folder)
    if world.first:
        write_heads(run, heads)
    return trained
