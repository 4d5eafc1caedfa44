"""What masked language modelling can be told: its length, its batches, its masks, what is held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from moembed.config import Strict
from moembed.training.optim import Beta, OptimConfig
from moembed.training.settings import LoopConfig

Objective = Literal["mlm", "span", "causal", "retromae"]


class MaskedOptim(OptimConfig):
    """Other defaults: those of the base of Nomic Embed v2."""

    learning_rate: float = Field(default=4e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: float = Field(default=1e-6, gt=0)
    warmup_steps: float = Field(default=0.05, ge=0)


class RouterLossConfig(Strict):
    """Coefficients; both losses are means over the chunks that a batch is computed in."""

    balance: float = Field(default=0.01, ge=0)
    z: float = Field(default=0.0, ge=0)


class HeldOutConfig(Strict):
    """The last ``share`` of the sequences of each language, at least one and at most ``sequences``."""

    share: float = Field(default=0.01, gt=0, lt=1)
    sequences: int = Field(default=64, ge=1)
    mask: float = Field(default=0.15, gt=0, lt=1)
    every: int = Field(default=500, ge=1)  # steps between two looks; there is one before and one at the end


class MaskedLMConfig(LoopConfig):
    """How much is trained on. Languages are drawn in proportion to ``sequences ** language_exponent``.

    ``mask`` and ``decoder_mask`` are shares of a sequence's tokens, special ones not counted.
    ``objectives`` gives every sequence one of several objectives, by chance in these proportions, as in
    ``{mlm: 2, causal: 1}``; null: all have ``objective``.
    """

    objective: Objective = "mlm"
    objectives: dict[Objective, Annotated[float, Field(ge=0)]] | None = None
    mask: float = Field(default=0.3, gt=0, lt=1)
    decoder_mask: float = Field(default=0.5, gt=0, lt=1)
    chunk_tokens: int = Field(default=16384, ge=1)  # tokens computed at a time: memory
    router: RouterLossConfig = RouterLossConfig()
    steps: int = Field(ge=1)
    batch_size: int = Field(default=256, ge=1)  # sequences per step, all processes together
    sequence_length: int = Field(default=512, ge=3)  # tokens, special ones included
    packed: bool = True  # texts end to end, or one text per sequence
    language_exponent: float = Field(default=0.3, ge=0, le=1)
    small_languages: Literal["refuse", "skip"] = "refuse"
    held_out: HeldOutConfig = HeldOutConfig()
    optim: MaskedOptim = MaskedOptim()

    @model_validator(mode="after")
    def _one_mix(self) -> MaskedLMConfig:
        if self.objectives is not None and self.objective != "mlm":
            raise ValueError(
                f"objectives says which objectives there are, so leave objective {self.objective!r} out"
            )
        if self.objectives is not None and not sum(self.objectives.values()):
            raise ValueError("objectives gives every objective 0; give one of them more")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """The share of the sequences of every objective that has any."""
        given: Mapping[Objective, float] = self.objectives or {self.objective: 1.0}
        total = sum(given.values())
        return {name: value / total for name, value in given.items() if value}
