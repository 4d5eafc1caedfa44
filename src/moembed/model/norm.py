"""Normalisation of states: LayerNorm (Ba et al., arXiv 1607.06450) and RMSNorm (arXiv 1910.07467)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from moembed.config import Strict


class NormSpec(Strict):
    """``layer``: ``(x - mean) / sqrt(var + eps) * weight + bias``.

    ``rms``: ``x / sqrt(mean(x²) + eps) * weight``.
    """

    kind: Literal["layer", "rms"] = "layer"
    eps: float = Field(default=1e-12, ge=0)


def make_norm(width: int, spec: NormSpec) -> nn.LayerNorm | nn.RMSNorm:
    if spec.kind == "rms":
        return nn.RMSNorm(width, eps=spec.eps)
    return nn.LayerNorm(width, eps=spec.eps)
