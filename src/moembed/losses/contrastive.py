"""Contrastive losses: pull a query to its document, push it from every other candidate.

All share one signature, ``loss(query_QM, document_NM, positive_Q, mask_QN=None, weight_Q=None)``: mined hard
negatives are further rows of ``document_NM``, false negatives are True in ``mask_QN``, curricula and focal
terms are ``weight_Q``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def info_nce(
    query_QM: Tensor,
    document_NM: Tensor,
    positive_Q: Tensor,
    mask_QN: Tensor | None = None,
    weight_Q: Tensor | None = None,
    *,
    temperature: float = 0.02,
) -> Tensor:
    """Query to document: ``mean_q -log( exp(s_q+ / t) / sum_n exp(s_qn / t) )``, s the cosine.

    Args:
        query_QM, document_NM: unit vectors.
        positive_Q: row of ``document_NM`` that answers each query.
        mask_QN: True where a candidate must not count as a negative; the positive itself always counts.
        weight_Q: weight of each query in the mean.
        temperature: t; ``scale = 1 / t`` elsewhere.

    Source: van den Oord et al., arXiv 1807.03748, eq. 4, with in-batch negatives.
    """
    score_QN = query_QM.float() @ document_NM.float().T / temperature
    if mask_QN is not None:
        score_QN = score_QN.masked_fill(_without_positive(mask_QN, positive_Q), float("-inf"))
    loss_Q = F.cross_entropy(score_QN, positive_Q, reduction="none")
    return loss_Q.mean() if weight_Q is None else (loss_Q * weight_Q).sum() / weight_Q.sum()


def symmetric_info_nce(
    query_QM: Tensor,
    document_NM: Tensor,
    positive_Q: Tensor,
    mask_QN: Tensor | None = None,
    weight_Q: Tensor | None = None,
    *,
    temperature: float = 0.02,
) -> Tensor:
    """Mean of ``info_nce`` and its mirror, in which each positive document looks for its query.

    Source: Radford et al., arXiv 2103.00020, figure 3.
    """
    forward = info_nce(query_QM, document_NM, positive_Q, mask_QN, weight_Q, temperature=temperature)
    own_Q = positive_Q.new_tensor(range(len(query_QM)))
    mirrored_QQ = mask_QN[:, positive_Q].T if mask_QN is not None else None
    backward = info_nce(
        document_NM[positive_Q], query_QM, own_Q, mirrored_QQ, weight_Q, temperature=temperature
    )
    return (forward + backward) / 2


def _without_positive(mask_QN: Tensor, positive_Q: Tensor) -> Tensor:
    return mask_QN.scatter(1, positive_Q[:, None], False)


LOSSES: dict[str, Callable[..., Tensor]] = {"info_nce": info_nce, "symmetric_info_nce": symmetric_info_nce}
