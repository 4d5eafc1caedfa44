"""Parameter groups, AdamW and learning-rate schedules as plain functions of progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from moembed.config import Strict


class OptimConfig(Strict):
    """``warmup_steps`` of 1 or more counts steps, below 1 it is a share of the run."""

    learning_rate: float = Field(default=2e-5, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: float = Field(default=0.1, ge=0)
    clip: float = Field(default=1.0, ge=0)  # largest gradient norm; 0 switches clipping off


SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "constant": lambda progress: 1.0,
}


def learning_rate(config: OptimConfig, step: int, progress: float) -> float:
    """Warm-up times decay at ``step`` (from 0 on), ``progress`` in [0, 1] being the share of the run done."""
    if config.warmup_steps >= 1:
        warmup = min(1.0, (step + 1) / config.warmup_steps)
        decay = progress
    else:
        share = config.warmup_steps
        # the first step of a run that counts by the clock would otherwise have rate 0
        warmup = 1.0 if progress >= share else max(progress / share, 0.1)
        decay = max(0.0, (progress - share) / (1 - share))
    return config.learning_rate * warmup * SCHEDULES[config.schedule](min(decay, 1.0))


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices (router and experts included) and none on biases and norms."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.ndim >= 2 and "bias" not in name].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
