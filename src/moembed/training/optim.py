"""Parameter groups, AdamW and learning-rate schedules as plain functions of progress."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from moembed.config import Strict
from moembed.types import UserError

Beta = Annotated[float, Field(ge=0, lt=1)]  # of a running mean, the share of what was before


class OptimConfig(Strict):
    """``warmup_steps`` of 1 or more counts steps, below 1 it is a share of the run.

    ``router_learning_rate`` and ``expert_learning_rate`` take the place of ``learning_rate`` for the routers'
    own weights and for those of the routed experts; all rates follow one schedule. None: no other rate.
    """

    learning_rate: float = Field(default=2e-5, gt=0)
    router_learning_rate: float | None = Field(default=None, gt=0)
    expert_learning_rate: float | None = Field(default=None, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    schedule: Literal["linear", "cosine", "constant", "inverse_sqrt"] = "linear"
    warmup_steps: float = Field(default=0.1, ge=0)
    clip: float = Field(default=1.0, ge=0)  # largest gradient norm; 0 switches clipping off

    @model_validator(mode="after")
    def _inverse_sqrt_counts_in_warmups(self) -> OptimConfig:
        if self.schedule == "inverse_sqrt" and not self.warmup_steps:
            raise ValueError("schedule inverse_sqrt needs warmup_steps, by which it measures the time")
        return self


# (share done of what follows the warm-up, time since the start in units of the warm-up) -> factor
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "linear": lambda progress, time: 1 - progress,
    "cosine": lambda progress, time: (1 + math.cos(math.pi * progress)) / 2,
    "constant": lambda progress, time: 1.0,
    "inverse_sqrt": lambda progress, time: max(time, 1.0) ** -0.5,
}


def learning_rate(config: OptimConfig, step: int, progress: float) -> float:
    """Linear warm-up, then decay from the full rate, at ``step`` (from 0 on).

    Args:
        progress: share of the run done, in [0, 1].
    """
    if config.warmup_steps >= 1:
        done, length = float(step), config.warmup_steps
        total = step / progress if progress > 0 else math.inf  # of a run that counts by the clock: so far
        warmup = min(1.0, (step + 1) / length)
    else:
        done, length, total = progress, config.warmup_steps, 1.0
        # the first step of a run that counts by the clock would otherwise have rate 0
        warmup = 1.0 if progress >= length else max(progress / length, 0.1)
    decay = (done - length) / (total - length) if done > length else 0.0
    time = done / length if length else math.inf
    return config.learning_rate * warmup * SCHEDULES[config.schedule](min(decay, 1.0), time)


def set_learning_rate(
    optimiser: torch.optim.Optimizer, config: OptimConfig, step: int, progress: float
) -> float:
    """Give every group of the optimiser the rate of this step; returns that of most parameters."""
    rate = learning_rate(config, step, progress)
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("times", 1.0)
    return rate


def clip_gradients(model: nn.Module, config: OptimConfig) -> float:
    """Scale all gradients down together to the norm ``config.clip``; returns the norm they had."""
    return float(nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf))


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices (router and experts included) and none on biases, norms and scalars.

    Parts of the model with a rate of their own come in groups of their own, behind all others; their group
    says how many ``times`` the learning rate that is.

    Raises:
        UserError: a rate for routers or experts, and the model has none that learn.
    """
    rates = {"router": config.router_learning_rate, "expert": config.expert_learning_rate}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {("", True): [], ("", False): []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = _part(name)
        key = (part if rates.get(part) else "", parameter.ndim >= 2 and "bias" not in name)
        groups.setdefault(key, []).append(parameter)
    for part, rate in rates.items():
        if rate and not any(key[0] == part for key in groups):
            raise UserError(f"optim.{part}_learning_rate: this model has no {part}s that learn; leave it out")
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decays else 0.0,
                **({"times": (rates[part] or 0.0) / config.learning_rate} if part else {}),
            }
            for (part, decays), parameters in groups.items()
        ],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def _part(name: str) -> str:
    """Of what a parameter is: ``router``, a routed ``expert``, or nothing of both.

    The tensors of experts carry their axis E in their names, as all tensors do (`moembed.types`).
    """
    if "router" in name:
        return "router"
    return "expert" if re.search(r"_E([FDR]{2}|F|D)(\.|$)", name) else ""
