"""Rotary position embedding, half-split layout (Su et al., arXiv 2104.09864; NeoX pairing)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from moembed.config import Strict

CosSin = tuple[Tensor, Tensor]


class RopeSpec(Strict):
    """``base`` of the angles; positions are divided by ``scaling`` (Chen et al., arXiv 2306.15595)."""

    base: float = Field(default=10000.0, gt=0)
    scaling: float = Field(default=1.0, gt=0)


def cos_sin(position_T: Tensor, head_size: int, spec: RopeSpec) -> CosSin:
    """Cosine and sine of the angle ``p / scaling * base^(-2i / C)``, each ``(T, 1, C / 2)`` fp32."""
    exponent = torch.arange(0, head_size, 2, device=position_T.device, dtype=torch.float32) / head_size
    angle = (position_T.float() / spec.scaling)[:, None] * spec.base**-exponent
    return angle.cos()[:, None], angle.sin()[:, None]


def rotate(states_THC: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn coordinate ``i`` with coordinate ``i + C/2`` of every head by the angle of its position."""
    first, second = states_THC.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(
        states_THC.dtype
    )
