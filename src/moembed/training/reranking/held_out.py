"""How well held-out lists are ordered, before training and on the way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from moembed.losses.reranking import RERANKING_LOSSES
from moembed.training.reranking.batch import ListBatch, prepare
from moembed.training.reranking.task import RerankingTask
from moembed.training.task import Look, Moment, Monitor

QUERIES = 256  # of each source, at most


class HeldOutLists(Monitor):
    """Loss and mean reciprocal rank of the right document on lists that are never trained on.

    The lowest mean loss so far is the best model. What a source holds out are its last rows.
    """

    name = "held_out"

    def __init__(self, task: RerankingTask) -> None:
        self.task, self.every, self.best = task, task.config.evaluate_every, math.inf
        self.names: list[str] = []
        self.batches: list[ListBatch] = []
        for number, (source, size) in enumerate(zip(task.sources, task.sizes, strict=True)):
            if size < len(source):
                rows = np.linspace(size, len(source) - 1, min(QUERIES, len(source) - size)).astype(int)
                pairs = source.pairs(np.unique(rows).tolist())
                self.names.append(task.names[number])
                self.batches.append(prepare(pairs, task.model, task.config, [task.config.seed, number]))

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
        """Of every source: the loss, and the mean of 1 / rank of the right document, which loses ties."""
        model, world = self.task.model, self.task.world
        was_training = model.training
        model.eval()
        value_S2 = torch.zeros(len(self.batches), 2, dtype=torch.float64)
        for number in world.share(len(self.batches)):
            value_S2[number] = torch.tensor(self._measure(self.batches[number]))
        model.train(was_training)
        loss, rank = world.sum(value_S2).T.tolist()
        names = self.names
        return {
            "held_out": {name: round(value, 5) for name, value in zip(names, loss, strict=True)},
            "held_out_mrr": {name: round(value, 5) for name, value in zip(names, rank, strict=True)},
        }

    def _measure(self, batch: ListBatch) -> tuple[float, float]:
        logit_P = torch.zeros(batch.chunks.rows)
        for chunk, row_B in zip(batch.chunks.batches, batch.chunks.row_CB, strict=True):
            logit_P[row_B] = self.task.embed(chunk).vector_BM[:, 0].float().cpu()
        queries = len(batch.pairs)
        loss = RERANKING_LOSSES[self.task.config.loss.kind](logit_P, batch.query_P, batch.positive_P, queries)
        right_Q = torch.zeros(queries)
        right_Q[batch.query_P[batch.positive_P]] = logit_P[batch.positive_P]
        ahead_P = (logit_P >= right_Q[batch.query_P]).double()  # the right one included
        rank_Q = torch.zeros(queries, dtype=torch.float64).index_add(0, batch.query_P, ahead_P)
        return float(loss), float((1 / rank_Q).mean())

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
