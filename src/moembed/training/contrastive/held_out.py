"""The loss on pairs that are never trained on, and the best model by it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from moembed.data.sources import Source
from moembed.model.tags import Tags
from moembed.training.contrastive.batch import PairBatch, SourceFormat, prepare
from moembed.training.contrastive.settings import SourceOptions
from moembed.training.contrastive.tags import SourceTags
from moembed.training.contrastive.task import ContrastiveTask
from moembed.training.task import Look, Moment, Monitor, distinct

PAIRS = 256  # of each source, at most


class HeldOutLoss(Monitor):
    """One batch of each source, always the same, and the lowest mean loss so far.

    What a source holds out are its last rows, not random ones: neighbours may share a document.

    Args:
        chooses: whether the lowest loss decides which model is kept as the best.
    """

    name = "held_out"

    def __init__(self, task: ContrastiveTask, chooses: bool) -> None:
        self.task, self.chooses, self.every = task, chooses, task.config.evaluate_every
        self.names: list[str] = []
        self.batches: list[PairBatch] = []
        self.best = math.inf
        own = zip(task.mixture.sources, task.sizes, task.forms, task.tags, strict=True)
        for source, size, form, tags in own:
            self._add(source, range(size, len(source)), form, tags)
        plain = SourceFormat.of(task.model, SourceOptions(), task.config.loss)
        for source in task.mixture.validation:
            self._add(source, range(len(source)), plain, _validation_tags(task, source))
        self.names = distinct(self.names)

    def _add(self, source: Source, rows: range, form: SourceFormat, tags: SourceTags | None) -> None:
        """Hold ``rows`` of a source out, or as many of them, evenly spaced, as are looked at."""
        if not rows:
            return
        chosen = np.unique(np.linspace(rows.start, rows.stop - 1, min(PAIRS, len(rows))).astype(int))
        tokenizer, config = self.task.model.tokenizer, self.task.config
        self.names.append(source.name)
        numbers = None if tags is None else tags.numbers(source, chosen.tolist())
        pairs = source.pairs(chosen.tolist())
        self.batches.append(prepare(pairs, form, tokenizer, config, tags=numbers))

    def due(self, moment: Moment) -> bool:
        return bool(self.batches) and (moment.step % self.every == 0 or moment.last)

    def look(self, moment: Moment) -> Look:
        losses = self.losses()
        mean = sum(losses.values()) / len(losses)
        better = mean < self.best
        self.best = min(self.best, mean)
        best = ("held_out_loss", mean) if better and self.chooses else None
        return Look({"held_out": losses, "held_out_loss": mean}, best=best)

    def losses(self) -> dict[str, float]:
        """The loss of every source; each process computes some of them."""
        model, world = self.task.model, self.task.world
        was_training = model.training
        model.eval()
        found = torch.zeros(len(self.batches), dtype=torch.float64)
        for i in world.share(len(self.batches)):
            found[i] = self.task.loss(self.batches[i])
        model.train(was_training)
        return dict(zip(self.names, world.sum(found).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]


def _validation_tags(task: ContrastiveTask, source: Source) -> SourceTags | None:
    """A source for validation has no options: its tags are its texts' roles, or its pairs' languages."""
    spec = task.model.encoder.spec
    tags = Tags.of(spec)
    by = None if tags is None or tags.by_role else "language"
    return SourceTags.of(spec, source, SourceOptions(tag_by=by))
