"""Score distillation: a student ranks the candidates of a query as its teachers do.

Teachers give scores, so their vectors may have any width. Sources: the loss of Hinton et al., arXiv
1503.02531, on the candidates of a query, as DistillKLDivLoss of sentence-transformers has it for lists of own
candidates (there times the temperature squared); Granite Embedding R2 names the stage, its model card gives
no formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moembed.losses.negatives import Mask

_SMALL = 1e-6  # a spread of scores below this is none


def z_scores(score_QN: Tensor, among_QN: Tensor) -> Tensor:
    """``(s - mean) / deviation`` of each query's candidates; zeros where all scores are equal."""
    count_Q1 = among_QN.sum(1, keepdim=True)
    mean_Q1 = (score_QN * among_QN).sum(1, keepdim=True) / count_Q1
    centred_QN = score_QN - mean_Q1
    deviation_Q1 = ((centred_QN.square() * among_QN).sum(1, keepdim=True) / count_Q1).sqrt()
    return torch.where(deviation_Q1 > _SMALL, centred_QN / deviation_Q1.clamp(min=_SMALL), 0.0)


def min_max(score_QN: Tensor, among_QN: Tensor) -> Tensor:
    """``(s - min) / (max - min)`` of each query's candidates; zeros where all scores are equal."""
    low_Q1 = score_QN.masked_fill(~among_QN, float("inf")).amin(1, keepdim=True)
    high_Q1 = score_QN.masked_fill(~among_QN, float("-inf")).amax(1, keepdim=True)
    spread_Q1 = high_Q1 - low_Q1
    return torch.where(spread_Q1 > _SMALL, (score_QN - low_Q1) / spread_Q1.clamp(min=_SMALL), 0.0)


NORMALIZATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "z": z_scores,
    "min_max": min_max,
    "none": lambda score_QN, among_QN: score_QN,
}


def teacher_distribution(
    scores: Sequence[Tensor], among_QN: Tensor, temperature: float, normalize: str = "z"
) -> Tensor:
    """``p_qn = softmax_n( mean_k norm(s^k_qn) / t )`` over the candidates that are True in ``among_QN``.

    Scores of each teacher are brought to one scale query by query, then averaged; other entries are 0.

    Args:
        scores: of every teacher, ``(Q, N)``.
        normalize: ``z``, ``min_max`` or ``none``.
    """
    scaled = [NORMALIZATIONS[normalize](score_QN.float(), among_QN) for score_QN in scores]
    mean_QN = torch.stack(scaled).mean(0) / temperature
    return mean_QN.masked_fill(~among_QN, float("-inf")).softmax(1)


def score_kl(
    query_QM: Tensor,
    document_NM: Tensor,
    positive_Q: Tensor,
    mask_QN: Mask | None = None,
    weight_Q: Tensor | None = None,
    *,
    target_QN: Tensor,
    among_QN: Tensor,
    temperature: float,
) -> Tensor:
    """``mean_q KL(p_q || softmax_n(cos(q, n) / t))`` over the candidates that are True in ``among_QN``.

    ``positive_Q`` and ``mask_QN`` are there for the signature of `moembed.losses.contrastive`: a teacher says
    itself how good a candidate is, false negatives included. It holds Q x N scores at once.

    Args:
        query_QM, document_NM: the student's unit vectors.
        target_QN: p, the `teacher_distribution`.
        weight_Q: weight of each query in the mean.
    """
    weight_Q = query_QM.new_ones(len(query_QM)) if weight_Q is None else weight_Q
    row_R = weight_Q.nonzero()[:, 0]
    target_RN, among_RN = target_QN[row_R], among_QN[row_R]
    score_RN = query_QM[row_R].float() @ document_NM.float().T / temperature
    student_RN = score_RN.masked_fill(~among_RN, float("-inf")).log_softmax(1).masked_fill(~among_RN, 0.0)
    kl_R = (torch.special.xlogy(target_RN, target_RN) - target_RN * student_RN).sum(1)
    return (kl_R * weight_Q[row_R]).sum() / weight_Q.sum()
