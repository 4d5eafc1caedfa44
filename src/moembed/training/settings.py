"""What every training run can be told, whatever it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from moembed.config import Strict
from moembed.evaluation.metrics import parse_metric
from moembed.training.optim import OptimConfig

LoraTarget = Literal["attention", "ffn", "experts", "router"]
LORA_TARGETS: tuple[LoraTarget, ...] = ("attention", "ffn", "experts", "router")


class LoraConfig(Strict):
    """Low-rank adapters that learn in place of the encoder's own weights: see `moembed.training.lora`.

    ``alpha`` null is twice the rank. ``targets`` null are all groups that the model has, but the routers.
    """

    rank: int = Field(default=8, ge=1, le=4096)
    alpha: float | None = Field(default=None, gt=0)
    targets: tuple[LoraTarget, ...] | None = Field(default=None, min_length=1)


class LoopConfig(Strict):
    """Optimiser, precision, adapters, checkpoints and the seed."""

    optim: OptimConfig = OptimConfig()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    activation_checkpointing: bool = False  # less memory per token for a third more computing
    lora: LoraConfig | None = None
    save_every: int = Field(default=500, ge=1)  # steps between two checkpoints
    keep_checkpoints: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)


class EvaluateConfig(Strict):
    """BEIR folders whose scores are looked at while the model trains, every so many steps or minutes.

    A look takes no longer than ``budget_seconds``: a task that needs more is cut down to a part of its
    queries and documents, which stays the same for the whole run.
    """

    tasks: tuple[str, ...] = Field(min_length=1)
    every_steps: int | None = Field(default=None, ge=1)
    every_minutes: float | None = Field(default=None, gt=0)
    budget_seconds: float = Field(default=60.0, gt=0)
    metric: str = "ndcg@10"  # the best model is the one with its highest mean over the tasks
    queries: int = Field(default=500, ge=1)  # of each task, at most

    @field_validator("tasks", mode="before")
    @classmethod
    def _one_folder(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        if parse_metric(value)[0] == "hole":
            raise ValueError(
                "holes are judgements that are missing, no merit of a model: choose another metric"
            )
        return value

    @model_validator(mode="after")
    def _one_schedule(self) -> EvaluateConfig:
        if (self.every_steps is None) == (self.every_minutes is None):
            raise ValueError("give exactly one of every_steps and every_minutes")
        return self


@dataclass(frozen=True, slots=True)
class Length:
    """Where a run ends: after ``steps``, or after ``minutes`` if the number of steps is not known."""

    steps: int | None
    minutes: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is done; 1 or more: it is over."""
        if self.steps is not None:
            return step / self.steps
        return seconds / (60 * (self.minutes or 0))
