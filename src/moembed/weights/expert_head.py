"""A block of experts behind pooling, added to a model that has none: at first the same function."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import torch
from pydantic import Field
from torch import Tensor

from moembed.config import Strict
from moembed.folder.parts import Parts
from moembed.model.expert_head import ExpertHead
from moembed.model.head import HeadConfig, Step
from moembed.types import UserError


class ExpertHeadConfig(Strict):
    """``hidden``: width inside the experts; None: half of the embedding's."""

    num_experts: int = Field(default=4, ge=1)
    hidden: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)


def add_expert_head(parts: Parts, options: ExpertHeadConfig) -> Parts:
    """The model with an `ExpertHead` before its last normalisation.

    The second matrices of the experts are zeros, so that they add nothing until they have learned; the first
    ones differ, and so will the experts.

    Raises:
        UserError: there is such a block already.
    """
    if any(isinstance(step, ExpertHead) for step in parts.head.steps):
        raise UserError("this model has experts behind pooling already: leave head out")
    dim = parts.head.dim(parts.pooling.dim(parts.spec.width))
    step = ExpertHead(dim, options.num_experts, options.hidden or max(1, dim // 2))
    place = len(parts.head.steps) - 1
    steps: tuple[Step, ...] = (*parts.head.steps[:-1], step, parts.head.steps[-1])
    generator = torch.Generator().manual_seed(options.seed)
    state: dict[str, Tensor] = {}
    for name, shape in step.shapes().items():
        state[name] = torch.zeros(shape)
        if name in ("router.up.weight", "router.down.weight", "up_EFD"):
            state[name].normal_(0, 1 / sqrt(shape[-1]), generator=generator)
    head_state = parts.head_state | {f"{place}.{name}": tensor for name, tensor in state.items()}
    return replace(parts, head=HeadConfig(steps), head_state=head_state)
