"""What distillation of vectors can be told: its length, its batches, its loss, what is held out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from moembed.config import Strict
from moembed.training.settings import LoopConfig


class DistillationLoss(Strict):
    """``kind``: see `moembed.losses.distillation`. ``balance`` and ``z``: coefficients of the router's terms,
    means over the chunks that a batch is computed in; distances alone give a router little to balance by."""

    kind: Literal["squared", "distance", "cosine"] = "squared"
    balance: float = Field(default=0.01, ge=0)
    z: float = Field(default=0.0, ge=0)


class DistillationConfig(LoopConfig):
    """Exactly one of ``steps``, ``epochs`` and ``minutes`` ends the run. A batch has texts of one role."""

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=32, ge=1)  # texts per step, all processes together
    chunk_tokens: int = Field(default=16384, ge=1)  # tokens computed at a time: memory
    max_length: int | None = Field(default=None, ge=3)  # tokens of a text; None: all that the student reads
    loss: DistillationLoss = DistillationLoss()
    workers: int = Field(default=1, ge=0)  # threads that tokenise ahead; 0: in the loop itself
    held_out: float = Field(default=0.02, ge=0, lt=1)  # share of the texts, the last ones, never trained on
    evaluate_every: int = Field(default=500, ge=1)  # steps between two looks at the held-out texts

    @model_validator(mode="after")
    def _one_end(self) -> DistillationConfig:
        if sum(end is not None for end in (self.steps, self.epochs, self.minutes)) != 1:
            raise ValueError("give exactly one of steps, epochs and minutes")
        return self
