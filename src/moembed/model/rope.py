"""Rotary position embedding, half-split layout (Su et al., arXiv 2104.09864; NeoX pairing)."""

from __future__ import annotations

import math

import torch
from pydantic import Field, model_validator
from torch import Tensor

from moembed.config import Strict

CosSin = tuple[Tensor, Tensor]


class TurnBands(Strict):
    """Slow frequencies are divided by ``factor``, fast ones stay, those between go from one to the other.

    Slow are those with fewer than ``low`` turns in ``original_length`` positions, fast those with more than
    ``high``. Source: ``modeling_rope_utils`` of transformers.
    """

    factor: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    original_length: int = Field(ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> TurnBands:
        if self.high <= self.low:
            raise ValueError(f"rope bands: high {self.high} must be more than low {self.low}")
        return self

    def scaled(self, frequency_I: Tensor, _: float) -> Tensor:
        turns_I = self.original_length * frequency_I / (2 * math.pi)
        kept_I = ((turns_I - self.low) / (self.high - self.low)).clamp(0, 1)
        return frequency_I * ((1 - kept_I) / self.factor + kept_I)


class YarnBands(Strict):
    """YaRN (Peng et al., arXiv 2309.00071): as `TurnBands`, in equal steps from frequency to frequency.

    Attributes:
        low, high: turns in ``original_length`` positions that bound the frequencies between slow and fast.
        magnitude: what cosine and sine are multiplied by; the paper takes ``0.1 ln(factor) + 1``.
        whole: whether the bounds are rounded outwards to numbers of frequencies.
    """

    factor: float = Field(gt=0)
    low: float = Field(default=1.0, gt=0)
    high: float = Field(default=32.0, gt=0)
    original_length: int = Field(ge=1)
    magnitude: float = Field(gt=0)
    whole: bool = True

    def scaled(self, frequency_I: Tensor, base: float) -> Tensor:
        size = 2 * len(frequency_I)

        def number(turns: float) -> float:
            return size * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

        first, last = number(self.high), number(self.low)
        if self.whole:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, size - 1)
        last += 0.001 if first == last else 0  # a step, not a division by zero
        number_I = torch.arange(len(frequency_I), dtype=torch.float32, device=frequency_I.device)
        kept_I = 1 - ((number_I - first) / (last - first)).clamp(0, 1)
        return frequency_I / self.factor * (1 - kept_I) + frequency_I * kept_I


class RopeSpec(Strict):
    """Rotary positions.

    Attributes:
        base: of the frequencies ``base^(-2i / C)``.
        scaling: what positions are divided by (Chen et al., arXiv 2306.15595).
        bands: frequencies that are scaled by how fast they are; None: all alike.
    """

    base: float = Field(default=10000.0, gt=0)
    scaling: float = Field(default=1.0, gt=0)
    bands: TurnBands | YarnBands | None = None


def cos_sin(position_T: Tensor, head_size: int, spec: RopeSpec) -> CosSin:
    """Cosine and sine of the angle ``p / scaling * base^(-2i / C)``, each ``(T, 1, C / 2)`` fp32."""
    exponent_I = torch.arange(0, head_size, 2, device=position_T.device, dtype=torch.float32) / head_size
    frequency_I = spec.base**-exponent_I
    if spec.bands:
        frequency_I = spec.bands.scaled(frequency_I, spec.base)
    angle_TI = (position_T.float() / spec.scaling)[:, None] * frequency_I
    cosine, sine = angle_TI.cos()[:, None], angle_TI.sin()[:, None]
    if isinstance(spec.bands, YarnBands):
        return cosine * spec.bands.magnitude, sine * spec.bands.magnitude
    return cosine, sine


def rotate(states_THC: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn coordinate ``i`` with coordinate ``i + C/2`` of every head by the angle of its position."""
    first, second = states_THC.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(
        states_THC.dtype
    )
