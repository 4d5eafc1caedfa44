"""The triplet loss: a positive must be nearer than a negative by a margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moembed.losses.negatives import Entries, Mask, held_nearer, masked_entries
from moembed.losses.shaped import Tally

_BLOCK = 2**22  # most scores held at a time


@dataclass(frozen=True, slots=True)
class Choice:
    """Which negatives a triplet loss takes, and by how much they must be farther.

    Attributes:
        margin: in cosines, 0 to 2.
        negatives: ``own``: the query's hard negatives; ``hardest``: of all candidates the nearest.
        mask_margin: a candidate above the positive's score plus this is no negative; None: it is one.
        owner_N: as in `moembed.losses.shaped.Shaping`.
    """

    margin: float = 0.2
    negatives: Literal["own", "hardest"] = "own"
    mask_margin: float | None = None
    owner_N: Tensor | None = None


def triplet(
    query_QM: Tensor,
    document_NM: Tensor,
    positive_Q: Tensor,
    mask_QN: Mask | None = None,
    weight_Q: Tensor | None = None,
    *,
    choice: Choice | None = None,
    tally: Tally | None = None,
) -> Tensor:
    """``mean_q mean_n max(0, d(q, +) - d(q, n) + margin)`` with the cosine distance ``d = 1 - s``.

    The inner mean runs over the hard negatives of the query itself; a query without one, and every query if
    ``choice`` says so, takes the hardest candidate instead. One that has no negative at all costs nothing.

    Args:
        query_QM, document_NM, positive_Q, mask_QN, weight_Q: as in `moembed.losses.contrastive.info_nce`.
        tally: counts the negatives that are used.

    Source: Schroff et al. (FaceNet), arXiv 1503.03832, eq. 3, with cosine distances as T-VEC (arXiv
    2504.16460) uses them; margin and choice there are not known to us.
    """
    choice = choice or Choice()
    query_QM, document_NM = query_QM.float(), document_NM.float()
    weight_Q = query_QM.new_ones(len(query_QM)) if weight_Q is None else weight_Q
    chosen = [
        _negatives(query_QM, document_NM, row_R, positive_Q[row_R], mask_QN, choice)
        for row_R in torch.split(weight_Q.nonzero()[:, 0], max(1, _BLOCK // len(document_NM)))
    ]
    query_P, negative_P = (torch.cat(part) for part in zip(*chosen, strict=True))

    positive_P = (query_QM[query_P] * document_NM[positive_Q[query_P]]).sum(1)
    wrong_P = (query_QM[query_P] * document_NM[negative_P]).sum(1)
    zeros_Q = query_QM.new_zeros(len(query_QM))
    total_Q = zeros_Q.index_add(0, query_P, (wrong_P - positive_P + choice.margin).relu())
    count_Q = torch.bincount(query_P, minlength=len(query_QM))
    if tally is not None:
        tally.add(int(weight_Q.count_nonzero()), len(query_P))
    return (total_Q / count_Q.clamp_min(1) * weight_Q).sum() / weight_Q.sum()


@torch.no_grad()
def _negatives(
    query_QM: Tensor, document_NM: Tensor, row_R: Tensor, positive_R: Tensor, mask_QN: Mask | None,
    choice: Choice,
) -> Entries:  # fmt: skip
    """Query and candidate of every pair that some queries learn from."""
    cosine_RN = query_QM[row_R] @ document_NM.T
    counts_RN = torch.ones_like(cosine_RN, dtype=torch.bool).scatter(1, positive_R[:, None], False)
    if mask_QN is not None:
        counts_RN[masked_entries(mask_QN, row_R, positive_R)] = False
    if choice.mask_margin is not None:
        counts_RN &= ~held_nearer(cosine_RN, positive_R, choice.mask_margin)
    own_RN = torch.zeros_like(counts_RN)
    if choice.negatives == "own" and choice.owner_N is not None:
        own_RN = counts_RN & (choice.owner_N == row_R[:, None])
    place_R1 = cosine_RN.masked_fill(~counts_RN, float("-inf")).argmax(1, keepdim=True)
    hardest_RN = torch.zeros_like(counts_RN).scatter(1, place_R1, True) & counts_RN
    place_P, candidate_P = torch.where(own_RN.any(1, keepdim=True), own_RN, hardest_RN).nonzero(as_tuple=True)
    return row_R[place_P], candidate_P
