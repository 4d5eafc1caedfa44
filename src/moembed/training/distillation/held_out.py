"""How near the student comes to the teacher on texts that are never trained on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from moembed.training.distillation.task import DistillationTask, TextBatch
from moembed.training.task import Look, Moment, Monitor

TEXTS = 256  # of each role of a source, at most


class HeldOutDistance(Monitor):
    """Loss, and mean cosine of student and teacher, before training and on the way.

    The lowest mean loss so far is the best model. What is held out are the last texts of a source.
    """

    name = "held_out"

    def __init__(self, task: DistillationTask) -> None:
        self.task, self.every, self.best = task, task.config.evaluate_every, math.inf
        self.batches: list[TextBatch] = []
        for source in task.sources:
            if texts := source.held_out:
                chosen = np.unique(np.linspace(0, len(texts) - 1, min(TEXTS, len(texts))).astype(int))
                self.batches.append(task.prepare(source, [texts[i] for i in chosen]))

    def begin(self, step: int) -> Look:
        if step or not self.batches:
            return Look()
        return Look({f"{key}_before": value for key, value in self.found().items()})

    def due(self, moment: Moment) -> bool:
        return bool(self.batches) and (moment.step % self.every == 0 or moment.last)

    def look(self, moment: Moment) -> Look:
        found = self.found()
        mean = sum(found["held_out"].values()) / len(found["held_out"])
        better, self.best = mean < self.best, min(self.best, mean)
        best = ("held_out_loss", mean) if better else None
        return Look({**found, "held_out_loss": mean}, best=best)

    @torch.no_grad()
    def found(self) -> dict[str, dict[str, float]]:
        """By source and role: the loss, and the mean cosine of the student's and the teacher's vectors."""
        model, world = self.task.model, self.task.world
        was_training = model.training
        model.eval()
        value_S2 = torch.zeros(len(self.batches), 2, dtype=torch.float64)
        for number in world.share(len(self.batches)):
            value_S2[number] = torch.tensor(self._measure(self.batches[number]))
        model.train(was_training)
        loss, cosine = world.sum(value_S2).T.tolist()
        names = [batch.name for batch in self.batches]
        return {
            "held_out": {name: round(value, 5) for name, value in zip(names, loss, strict=True)},
            "held_out_cosine": {name: round(value, 5) for name, value in zip(names, cosine, strict=True)},
        }

    def _measure(self, batch: TextBatch) -> tuple[float, float]:
        loss = cosine = 0.0
        for chunk, teacher_BM in zip(batch.chunks, batch.teacher_CBM, strict=True):
            student_BM = self.task.embed(chunk).vector_BM.float().cpu()
            loss += float(self.task.distance(student_BM, teacher_BM)) * len(teacher_BM)
            cosine += float(F.cosine_similarity(student_BM, teacher_BM, dim=-1).sum())
        return loss / len(batch.texts), cosine / len(batch.texts)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
