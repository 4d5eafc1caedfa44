"""Signs that are trained with the vector: they find what it finds, and each bit says something of its own.

With ``b = sign(x)`` of the first coordinates, ± 1:

    loss(x) + weight · loss(b) + balance · mean_i (mean_t b_ti)²
            + decorrelation · mean_{i≠j} (mean_t b_ti b_tj)²

over the texts t of a batch. A bit that half of the texts have is worth most (balance), and so are bits that
do not repeat one another (decorrelation). The sign has no slope: its gradient is that of the identity where
``|√m x_i / |x|| ≤ 1`` (straight-through), for m bits.

Sources: the Real-Binary Paragraph Vector of Grzegorczyk and Kurdziel, *Binary Paragraph Vectors* (2017),
short codes for the shortlist and floats for its order; Weiss et al., *Spectral Hashing* (2008), for balanced
and uncorrelated bits; Bengio et al. (2013), arXiv 1308.3432, for the straight-through gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moembed.losses.nested import Loss, shorten


class SignThrough(torch.autograd.Function):
    """sign(z), zero being -1; the gradient passes where ``|z| ≤ 1``."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return torch.where(z > 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return grads[0] * (z.abs() <= 1)


def signs(vector_BM: Tensor, bits: int) -> Tensor:
    """The signs of the first coordinates, ± 1, ``(B, bits)``."""
    signs_BP: Tensor = SignThrough.apply(shorten(vector_BM, bits) * bits**0.5)  # type: ignore[no-untyped-call]
    return signs_BP


def with_signs(loss: Loss, of_signs: Loss, bits: int, weight: float) -> Loss:
    """``loss(x) + weight · of_signs(b)``, b at length 1; what is counted of negatives is that of x alone."""

    def both(query_QM: Tensor, document_NM: Tensor, *arguments: Any, **options: Any) -> Tensor:
        query_QP, document_NP = (signs(vector_BM, bits) / bits**0.5 for vector_BM in (query_QM, document_NM))
        term = of_signs(query_QP, document_NP, *arguments, **(options | {"tally": None}))
        return loss(query_QM, document_NM, *arguments, **options) + weight * term

    return both


def imbalance(signs_BP: Tensor) -> Tensor:
    """``mean_i (mean_t b_ti)²``: 0 where half of the texts have every bit, 1 where bits never change."""
    return signs_BP.mean(dim=0).square().mean()


def correlation(signs_BP: Tensor) -> Tensor:
    """``mean_{i≠j} (mean_t b_ti b_tj)²``: 0 of independent bits, 1 where all say the same or its contrary."""
    texts, bits = signs_BP.shape
    gram_PP = signs_BP.T @ signs_BP / texts
    return (gram_PP.square().sum() - bits) / max(bits * (bits - 1), 1)
