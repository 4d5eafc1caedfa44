"""Losses that pull a student's vectors to those of a teacher, text by text: no labels, no negatives.

All take ``(student_BM, teacher_BM)`` and give the mean over the texts; both hold unit vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def squared_distance(student_BM: Tensor, teacher_BM: Tensor) -> Tensor:
    """``mean_b |s_b - t_b|^2``; of unit vectors, two times ``cosine_distance``.

    Source: the loss of LEAF (Vujanic, Rueckstiess, arXiv 2509.12539), as a review of the paper writes it; we
    did not have the paper's own text.
    """
    return (student_BM.float() - teacher_BM.float()).square().sum(-1).mean()


def distance(student_BM: Tensor, teacher_BM: Tensor) -> Tensor:
    """``mean_b |s_b - t_b|``; where both are equal, the gradient is 0.

    Of unit vectors it lies within 0..2. Near pairs are pulled as hard as far ones. Source:
    ``l2`` of EmbedDistill (Kim et al., arXiv 2301.12005), as sentence-transformers has it.
    """
    return torch.linalg.vector_norm(student_BM.float() - teacher_BM.float(), dim=-1).mean()


def cosine_distance(student_BM: Tensor, teacher_BM: Tensor) -> Tensor:
    """``mean_b 1 - cos(s_b, t_b)``, within 0..2."""
    return (1 - F.cosine_similarity(student_BM.float(), teacher_BM.float(), dim=-1)).mean()


VECTOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": squared_distance,
    "distance": distance,
    "cosine": cosine_distance,
}
