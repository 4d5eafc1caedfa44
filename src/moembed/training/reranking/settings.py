"""What training a reranker can be told: its length, its lists of candidates, its loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from moembed.config import Strict
from moembed.training.settings import LoopConfig


class RerankingLoss(Strict):
    """``kind``: ``listwise`` compares the documents of a query, ``bce`` judges each by itself; and the
    router's terms, as in `moembed.training.contrastive.settings.LossConfig`."""

    kind: Literal["listwise", "bce"] = "listwise"
    balance: float = Field(default=0.01, ge=0)
    balance_window: int = Field(default=1, ge=1)
    bias_rate: float = Field(default=0.0, ge=0)
    z: float = Field(default=0.0, ge=0)


class RerankingConfig(LoopConfig):
    """Exactly one of ``steps``, ``epochs`` and ``minutes`` ends the run.

    The list of a query is its document, its hard negatives, and ``random_negatives`` documents of other
    queries of the batch that are not known to answer it.
    """

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=32, ge=2)  # queries per step, all processes together
    chunk_tokens: int = Field(default=16384, ge=1)  # tokens computed at a time: memory, not the result
    graph_tokens: int | None = Field(default=None, ge=1)  # of chunks computed once; None: chunk_tokens
    max_length: int | None = Field(default=None, ge=5)  # tokens of a pair; None: all that the model reads
    negatives: int | None = Field(default=None, ge=0)  # hard negatives used per query; None: all of them
    random_negatives: int = Field(default=0, ge=0)
    loss: RerankingLoss = RerankingLoss()
    workers: int = Field(default=1, ge=0)  # threads that tokenise ahead; 0: in the loop itself
    held_out: float = Field(default=0.0, ge=0, lt=1)  # share of each source, its last rows, never trained on
    evaluate_every: int = Field(default=500, ge=1)  # steps between two looks at the held-out lists

    @model_validator(mode="after")
    def _fits_together(self) -> RerankingConfig:
        if sum(end is not None for end in (self.steps, self.epochs, self.minutes)) != 1:
            raise ValueError("give exactly one of steps, epochs and minutes")
        if self.random_negatives >= self.batch_size:
            raise ValueError("random_negatives are documents of other queries: fewer than batch_size")
        if self.negatives == 0 and self.random_negatives == 0:
            raise ValueError("negatives and random_negatives are 0: there is nothing to compare with")
        return self
