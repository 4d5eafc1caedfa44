"""Take a loss, return a loss that also trains the beginnings of the vector, or those of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[..., Tensor]


def matryoshka(
    loss: Loss,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    own: Sequence[dict[str, Any]] | None = None,
) -> Loss:
    """``sum_d w_d * loss(first d coordinates, made unit vectors again)``; every weight is 1 by default.

    Args:
        own: options of the loss that each dim has for itself, in the place of those of the call.

    Source: Kusupati et al., arXiv 2205.13147, eq. 1.
    """
    weights = weights or [1.0] * len(dims)
    own = own or [{}] * len(dims)

    def nested(query_QM: Tensor, document_NM: Tensor, *arguments: Any, **options: Any) -> Tensor:
        terms = [
            weight * loss(shorten(query_QM, dim), shorten(document_NM, dim), *arguments, **(options | more))
            for dim, weight, more in zip(dims, weights, own, strict=True)
        ]
        return sum(terms[1:], terms[0])

    return nested


def by_depth(loss: Loss, weights: Mapping[int, float]) -> Loss:
    """``sum_l w_l * loss(vectors after l layers)``: takes vectors by depth where ``loss`` takes vectors.

    Source: Li et al., arXiv 2402.14776 (2D Matryoshka).
    """

    def nested(
        query: Mapping[int, Tensor], document: Mapping[int, Tensor], *arguments: Any, **options: Any
    ) -> Tensor:
        terms = [
            weight * loss(query[depth], document[depth], *arguments, **options)
            for depth, weight in weights.items()
        ]
        return sum(terms[1:], terms[0])

    return nested


def shorten(vector_BM: Tensor, dim: int) -> Tensor:
    """The first ``dim`` coordinates, at length 1."""
    return F.normalize(vector_BM[:, :dim], dim=-1)
