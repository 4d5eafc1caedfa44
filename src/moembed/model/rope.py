"""Rotary position embedding, half-split layout (Su et al., arXiv 2104.09864; NeoX pairing)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(position_T: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle ``p * base^(-2i / head_width)``, each ``(T, 1, head_width / 2)`` fp32."""
    exponent = torch.arange(0, head_width, 2, device=position_T.device, dtype=torch.float32) / head_width
    angle = position_T.float()[:, None] * base**-exponent
    return angle.cos()[:, None], angle.sin()[:, None]


def rotate(states_THC: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn coordinate ``i`` with coordinate ``i + C/2`` of every head by the angle of its position."""
    first, second = states_THC.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(
        states_THC.dtype
    )
