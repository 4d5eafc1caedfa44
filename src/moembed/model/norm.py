"""Normalisation of states: LayerNorm (Ba et al., arXiv 1607.06450) and RMSNorm (arXiv 1910.07467)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from moembed.config import Strict


class NormSpec(Strict):
    """``layer``: ``(x - mean) / sqrt(var + eps) * weight + bias``.

    ``rms``: ``x / sqrt(mean(x²) + eps) * weight``.

    Attributes:
        bias: whether a ``layer`` norm adds one.
        plus_one: an ``rms`` norm multiplies by ``1 + weight``.
    """

    kind: Literal["layer", "rms"] = "layer"
    eps: float = Field(default=1e-12, ge=0)
    bias: bool = True
    plus_one: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> NormSpec:
        if self.kind == "rms" and not self.bias:
            raise ValueError("an rms norm has no bias to leave out")
        if self.kind == "layer" and self.plus_one:
            raise ValueError("plus_one is of rms norms alone")
        return self


class PlusOneRMSNorm(nn.Module):
    """``x / sqrt(mean(x²) + eps) * (1 + weight)``, in float32; a fresh weight is 0."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        scaled = F.rms_norm(states.float(), (states.shape[-1],), 1 + self.weight.float(), self.eps)
        return scaled.to(states.dtype)


Norm = nn.LayerNorm | nn.RMSNorm | PlusOneRMSNorm


def make_norm(width: int, spec: NormSpec) -> Norm:
    if spec.plus_one:
        return PlusOneRMSNorm(width, spec.eps)
    if spec.kind == "rms":
        return nn.RMSNorm(width, eps=spec.eps)
    return nn.LayerNorm(width, eps=spec.eps, bias=spec.bias)
