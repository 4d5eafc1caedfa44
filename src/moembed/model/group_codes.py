"""Matrices in groups of few bits, rounded to the nearest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 64  # weights that share a scale, which takes 16 bits


@dataclass(frozen=True)
class GroupCodes:
    """A matrix as ``w ≈ q · s``: integers q of ``bits`` bits, a scale s for every ``GROUP`` along a row.

    Attributes:
        code: uint8, shifted to be positive; two of 4 bits a byte, the first in its lower half.
        scale: float16, one for each group.
        shape: of the matrix, whose last axis is cut into groups; a last group that is not full holds zeros.
    """

    code: Tensor
    scale: Tensor
    bits: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, weight: Tensor, bits: int) -> GroupCodes:
        """``s = max |w| / (2^(bits-1) - 1)`` of a group, and ``q = round(w / s)``."""
        largest = 2 ** (bits - 1) - 1
        padded = F.pad(weight.float(), (0, -weight.shape[-1] % GROUP)).reshape(-1, GROUP)
        scale = (padded.abs().amax(1) / largest).half()
        whole = (padded / scale.float().clamp(min=1e-12)[:, None]).round().clamp(-largest, largest)
        code = (whole + 2 ** (bits - 1)).to(torch.uint8)
        if bits == 4:
            code = code[:, ::2] | (code[:, 1::2] << 4)
        return cls(code.flatten(), scale, bits, tuple(weight.shape))

    def weight(self) -> Tensor:
        """``q · s`` in float32."""
        code = self.code
        if self.bits == 4:
            code = torch.stack([code & 15, code >> 4], -1).flatten()
        value = (code.float() - 2 ** (self.bits - 1)).reshape(-1, GROUP) * self.scale.float()[:, None]
        last = self.shape[-1] + -self.shape[-1] % GROUP
        return value.reshape(*self.shape[:-1], last)[..., : self.shape[-1]].contiguous()

    @property
    def num_bytes(self) -> int:
        return self.code.nbytes + self.scale.nbytes
