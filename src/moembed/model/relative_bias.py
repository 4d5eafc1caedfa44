"""A learned number added to the score of two tokens, by their distance (Raffel et al., arXiv 1910.10683)."""

from __future__ import annotations

import math

import torch
from pydantic import Field, model_validator
from torch import Tensor

from moembed.config import Strict


class RelativeBias(Strict):
    """A table of a row per bucket of distances and a column per head, which all layers read.

    Half of the ``buckets`` are for the tokens before, half for those behind. Of each half, the first half
    are single distances, from 0; the others grow by a constant factor up to ``max_distance``, and the last
    takes all that is beyond.
    """

    buckets: int = Field(default=32, ge=4)
    max_distance: int = Field(default=128, ge=2)

    @model_validator(mode="after")
    def _fits_together(self) -> RelativeBias:
        if self.buckets % 4:
            raise ValueError(f"buckets {self.buckets} is not a multiple of 4")
        if self.max_distance <= self.buckets // 4:
            raise ValueError(f"max_distance {self.max_distance} leaves buckets unused")
        return self


def bucket(distance_N: Tensor, spec: RelativeBias) -> Tensor:
    """The row of the table for keys that stand ``distance_N`` (int64) tokens behind their query."""
    half = spec.buckets // 2
    single = half // 2
    away_N = distance_N.abs()
    growth = math.log(spec.max_distance / single)
    # the clamp keeps log(0) out, whose value is not used
    beyond_N = torch.log(away_N.clamp(min=1).float() / single) / growth * (half - single)
    beyond_N = (single + beyond_N.long()).clamp(max=half - 1)
    return torch.where(away_N < single, away_N, beyond_N) + (distance_N > 0) * half


def by_distance(table_NH: Tensor, longest: int, spec: RelativeBias) -> Tensor:
    """The bias of every distance ``-(longest - 1) .. longest - 1``, ``(H, 2 * longest - 1)``."""
    distance_N = torch.arange(1 - longest, longest, device=table_NH.device)
    return table_NH[bucket(distance_N, spec)].t()


def between(bias_HN: Tensor, length: int) -> Tensor:
    """``(H, S, S)``: what is added to the score of query i and key j, out of `by_distance`."""
    middle = bias_HN.shape[1] // 2
    place_S = torch.arange(length, device=bias_HN.device)
    return bias_HN[:, place_S[None, :] - place_S[:, None] + middle]
