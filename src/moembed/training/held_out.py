"""The loss on pairs that are never trained on, and the best model by it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.training.distributed import World
from moembed.training.gradcache import Embed
from moembed.training.settings import TrainConfig
from moembed.training.step import Manner, Objective, Prepared, prepare

PAIRS = 256  # of each source, at most


def learnt(source: Source, config: TrainConfig) -> int:
    """How many rows of a source, from the first on, are trained on."""
    return len(source) - round(config.held_out * len(source))


class HeldOut:
    """One batch of each source, always the same, and the lowest mean loss so far.

    What a source holds out are its last rows, not random ones: neighbours may share a document.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.names: list[str] = []
        self.batches: list[Prepared] = []
        self.best = math.inf

    def add(self, source: Source, rows: range, manner: Manner, model: Embedder) -> None:
        """Hold ``rows`` of a source out, or as many of them, evenly spaced, as are looked at."""
        if not rows:
            return
        chosen = np.unique(np.linspace(rows.start, rows.stop - 1, min(PAIRS, len(rows))).astype(int))
        self.names.append(source.name)
        self.batches.append(prepare(source.pairs(chosen.tolist()), manner, model.tokenizer, self.config))

    @torch.no_grad()
    def losses(self, model: Embedder, embed: Embed, objective: Objective, world: World) -> dict[str, float]:
        """The loss of every source; each process computes some of them."""
        was_training = model.training
        model.eval()
        found = torch.zeros(len(self.batches), dtype=torch.float64)
        for i in world.share(len(self.batches)):
            found[i] = float(objective(embed_all(embed, self.batches[i]), self.batches[i]))
        model.train(was_training)
        return dict(zip(self.names, world.sum(found).tolist(), strict=True))

    @staticmethod
    def mean(losses: dict[str, float]) -> float:
        return sum(losses.values()) / len(losses)

    def improves(self, loss: float) -> bool:
        """Whether ``loss`` is the lowest so far; then it is remembered."""
        better = loss < self.best
        self.best = min(self.best, loss)
        return better

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]


def embed_all(embed: Embed, batch: Prepared) -> dict[int, torch.Tensor]:
    """The vectors of a whole batch by depth, in its order."""
    vectors: dict[int, torch.Tensor] = {}
    for chunk, row_B in zip(batch.chunks.batches, batch.chunks.row_CB, strict=True):
        for depth, vector_BM in embed(chunk).by_depth.items():
            place = vectors.setdefault(depth, vector_BM.new_zeros(batch.chunks.rows, vector_BM.shape[1]))
            place[row_B] = vector_BM
    return vectors
