"""Training of a student on texts and a teacher's vectors: the task, what looks at it, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from moembed.console import say
from moembed.embedder import Embedder
from moembed.training.distillation.held_out import HeldOutDistance
from moembed.training.distillation.settings import DistillationConfig
from moembed.training.distillation.task import DistillationTask, Searched
from moembed.training.distillation.teacher import TeacherVectors
from moembed.training.distillation.texts import RoleTexts
from moembed.training.loop import Trained, run_loop
from moembed.training.monitors.dead_experts import DeadExpertAlarm
from moembed.training.parallel import current
from moembed.training.settings import Length
from moembed.training.task import Monitor


def train_distillation(
    config: DistillationConfig, model: Embedder, teacher: TeacherVectors, sources: Sequence[RoleTexts],
    run: Path, searched: Searched | None = None, resume: bool = False,
    make_folder: Callable[[], object] | None = None,
) -> Trained:  # fmt: skip
    """Train ``model`` in place; ``run`` gets ``metrics.jsonl``, ``checkpoints/`` and at the end ``model/``.

    Args:
        sources: texts whose vectors ``teacher`` has.
        searched: whose documents the queries of the student may search, for its folder.
        make_folder: see `moembed.training.loop.run_loop`.

    Raises:
        UserError: fewer texts than a batch, a student of another width, and what `run_loop` refuses.
    """
    world = current()
    task = DistillationTask(config, model, teacher, sources, world, searched)
    if world.first:
        for adapters in task.adapters.values():
            say(adapters.sentence)
    monitors: list[Monitor] = [HeldOutDistance(task), DeadExpertAlarm("raise loss.balance")]
    length = Length(task.steps, config.minutes)
    return run_loop(task, monitors, config, length, run, resume, config, make_folder)
