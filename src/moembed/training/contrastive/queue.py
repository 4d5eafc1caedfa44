"""A queue of past document vectors: many more negatives than a batch has, for their scores alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moembed.losses.guided import Guided
from moembed.losses.negatives import Duplicates
from moembed.losses.pairs import SameLabel
from moembed.training.contrastive.batch import PairBatch

FOREIGN = -1  # the owner of a candidate that is of no pair of the batch


class VectorQueue:
    """The vectors of the last ``size`` documents and hard negatives, as they were in their own steps.

    They are negatives of every query of later steps, whatever source they are of, and have no gradient: the
    loss is exactly that of a batch with these columns. They are older than the weights by as many steps as
    the queue holds. A text that is a known answer of a query is masked in the queue too, by its key; a guide
    does not look at it. The memory is ``size`` vectors per depth from the first step on. Several processes
    hold the same queue each, for each has the vectors of the whole batch.

    Source: Wu et al. (2018), arXiv 1805.01978, and MoCo, He et al., arXiv 1911.05722, there with a second
    encoder that moves slowly; here the model's own vectors, as in cross-batch memory, Wang et al., arXiv
    1912.06798.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.vectors: dict[int, Tensor] = {}
        self.key_K = torch.empty(0, dtype=torch.long)
        self.filled = self.next = 0
        self._coming: tuple[dict[int, Tensor], Tensor] | None = None

    def join(
        self, documents: Mapping[int, Tensor], batch: PairBatch, newest: int
    ) -> tuple[dict[int, Tensor], Duplicates | Guided | SameLabel, Tensor]:
        """The candidates of a step, with the newest of the queue behind them, their mask and their owners.

        The step's own are kept for ``push``.
        """
        self._coming = {depth: vector_NM.detach() for depth, vector_NM in documents.items()}, batch.key_N
        count = min(newest, self.filled)
        if not count:
            return dict(documents), batch.known, batch.owner_N
        joined = {
            depth: torch.cat(
                [vector_NM, *(some.to(vector_NM.dtype) for some in self._newest(self.vectors[depth], count))]
            )
            for depth, vector_NM in documents.items()
        }
        key_N = torch.cat([batch.key_N, *self._newest(self.key_K, count)])
        answers = Duplicates.of(batch.query_key_Q, key_N, batch.known.positive_Q)
        known = replace(batch.known, known=answers) if isinstance(batch.known, Guided) else answers
        owner_N = torch.cat([batch.owner_N, torch.full((count,), FOREIGN)])
        return joined, known, owner_N

    def _newest(self, ring: Tensor, count: int) -> tuple[Tensor, ...]:
        """The newest ``count`` rows, oldest first: views, for a copy in every step would cost."""
        start = (self.next - count) % self.size
        whole = start + count <= self.size
        return (ring[start : start + count],) if whole else (ring[start:], ring[: self.next])

    def push(self) -> None:
        """After the step: its candidates become the newest of the queue."""
        if self._coming is None:
            return
        vectors, key_N = self._coming
        self._coming = None
        rows = min(self.size, len(key_N))
        place = (self.next + torch.arange(rows)) % self.size
        if not self.vectors:
            self.key_K = torch.zeros(self.size, dtype=torch.long)
        for depth, vector_NM in vectors.items():
            if depth not in self.vectors:
                self.vectors[depth] = vector_NM.new_zeros(self.size, vector_NM.shape[1])
            self.vectors[depth][place.to(vector_NM.device)] = vector_NM[-rows:]
        self.key_K[place] = key_N[-rows:]
        self.next = (self.next + rows) % self.size
        self.filled = min(self.size, self.filled + rows)

    def state_dict(self) -> dict[str, Any]:
        return {"vectors": self.vectors, "keys": self.key_K, "filled": self.filled, "next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vectors, self.key_K = dict(state["vectors"]), state["keys"].cpu()
        self.filled, self.next = state["filled"], state["next"]
