"""Contrastive losses: pull a query to its document, push it from every other candidate.

All begin with ``loss(query_QM, document_NM, positive_Q, mask_QN=None, weight_Q=None)``: mined hard negatives
are further rows of ``document_NM``, false negatives are True in ``mask_QN``, curricula are ``weight_Q``.
Queries of weight 0 cost nothing: several processes compute one loss that way, each its own queries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.losses.blocked import BlockedCrossEntropy
from moembed.losses.negatives import Mask, masked_entries
from moembed.losses.shaped import Given, Shaping, Tally, shaped_info_nce
from moembed.losses.triplet import triplet

BLOCK = 2**22  # most scores held at a time


def info_nce(
    query_QM: Tensor,
    document_NM: Tensor,
    positive_Q: Tensor,
    mask_QN: Mask | None = None,
    weight_Q: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.02,
    shaping: Shaping | None = None,
    tally: Tally | None = None,
) -> Tensor:
    """Query to document: ``mean_q -log( exp(s_q+ / t) / sum_n exp(s_qn / t) )``, s the cosine.

    With very many scores the sum runs over blocks of queries: memory grows with Q + N instead of Q * N.

    Args:
        query_QM, document_NM: unit vectors.
        positive_Q: row of ``document_NM`` that answers each query.
        mask_QN: True where a candidate must not count as a negative; the positive itself always counts.
        weight_Q: weight of each query in the mean.
        temperature: t; ``scale = 1 / t`` elsewhere.

    Source: van den Oord et al., arXiv 1807.03748, eq. 4, with in-batch negatives.
    """
    query_QM, document_NM = query_QM.float(), document_NM.float()
    queries, candidates = len(query_QM), len(document_NM)
    weight_Q = query_QM.new_ones(queries) if weight_Q is None else weight_Q
    if shaping is not None:
        given = Given(query_QM, document_NM, positive_Q, mask_QN, temperature, shaping)
        return shaped_info_nce(given, weight_Q, BLOCK, tally)
    row_R = weight_Q.nonzero()[:, 0]
    if tally is not None:
        tally.count(mask_QN, row_R, positive_Q, candidates, BLOCK)
    if queries * candidates > BLOCK:
        scale = torch.as_tensor(1 / temperature, device=query_QM.device)
        blocked: Tensor = BlockedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            query_QM, document_NM, scale, positive_Q, mask_QN, weight_Q, BLOCK
        )
        return blocked / weight_Q.sum()
    positive_R, score_RN = positive_Q[row_R], query_QM[row_R] @ document_NM.T / temperature
    if mask_QN is not None:
        entries = masked_entries(mask_QN, row_R, positive_R)
        score_RN = score_RN.index_put(entries, score_RN.new_tensor(float("-inf")))
    loss_R = F.cross_entropy(score_RN, positive_R, reduction="none")
    return (loss_R * weight_Q[row_R]).sum() / weight_Q.sum()


def symmetric_info_nce(
    query_QM: Tensor,
    document_NM: Tensor,
    positive_Q: Tensor,
    mask_QN: Mask | None = None,
    weight_Q: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.02,
    shaping: Shaping | None = None,
    tally: Tally | None = None,
) -> Tensor:
    """Mean of ``info_nce`` and its mirror, in which each positive document looks for its query.

    The mirror has no hard negatives, and no further terms; ``tally`` counts the forward direction.

    Source: Radford et al., arXiv 2103.00020, figure 3.
    """
    options: dict[str, Any] = {"temperature": temperature, "shaping": shaping, "tally": tally}
    forward = info_nce(query_QM, document_NM, positive_Q, mask_QN, weight_Q, **options)
    own_Q = torch.arange(len(query_QM), device=query_QM.device)
    mirrored_QQ: Mask | None
    if isinstance(mask_QN, Tensor):
        mirrored_QQ = mask_QN[:, positive_Q].T
    else:
        mirrored_QQ = mask_QN.mirror() if mask_QN is not None else None
    options = {"temperature": temperature, "shaping": shaping.mirrored() if shaping else None}
    backward = info_nce(document_NM[positive_Q], query_QM, own_Q, mirrored_QQ, weight_Q, **options)
    return (forward + backward) / 2


SOFTMAX_LOSSES: dict[str, Callable[..., Tensor]] = {
    "info_nce": info_nce,
    "symmetric_info_nce": symmetric_info_nce,
}
LOSSES: dict[str, Callable[..., Tensor]] = SOFTMAX_LOSSES | {"triplet": triplet}
