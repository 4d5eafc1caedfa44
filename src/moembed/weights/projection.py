"""A linear layer behind pooling that gives a model the width of another one's vectors."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import torch
from torch import Tensor

from moembed.folder.parts import Parts
from moembed.model.head import Dense, HeadConfig, Step


def add_projection(parts: Parts, dim: int, seed: int = 0) -> Parts:
    """The model with ``W x + b`` before its last normalisation: vectors of ``dim`` coordinates.

    W is drawn from a normal distribution of deviation ``1 / sqrt(in)``, so the length of vectors stays about
    what it was where the widths are equal; b is 0. It is a Dense module of the model, saved and served with
    it. Prefixes that were trained to stand alone, and a default cut, are those of the old vector and go.
    """
    before = parts.head.dim(parts.pooling.dim(parts.spec.width))
    step = Dense(before, dim, activation="identity")
    place = len(parts.head.steps) - 1
    steps: tuple[Step, ...] = (*parts.head.steps[:-1], step, parts.head.steps[-1])
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {
        f"{place}.linear.weight": torch.empty(dim, before).normal_(0, 1 / sqrt(before), generator=generator),
        f"{place}.linear.bias": torch.zeros(dim),
    }
    return replace(
        parts, head=HeadConfig(steps), head_state=parts.head_state | tensors, dims=(), truncate_dim=None
    )
