"""Mixing of hard negatives: more candidates for a query, made of the vectors of those it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mixing:
    """Candidates that are normalised sums of a query's negatives, and count for this query alone.

    Parents are the query's own hard negatives; where fewer than two of them count, all negatives of the batch
    that count; of these the nearest. What is masked is no parent, and a query with fewer than two parents has
    no mixed candidate. Chance, where there is any, is drawn for all queries of a batch at once from a seed,
    so that it does not depend on chunks or processes.

    Attributes:
        kind: ``pair``: ``lambda h_a + (1 - lambda) h_b`` of two parents by chance, lambda from Beta(2, 2);
            ``list``: ``sum_p softmax_p(s_qp) h_p`` over the parents, one candidate.
        columns: candidates per query.
        parents: how many negatives, at most, are mixed of.
        detach: parents get no gradient through the mixed candidate. The weights of the sums never have one.
        seed: of the chance.

    Source: KaLM-Embedding-V2, arXiv 2506.20923, "online hard-negative mixing" in its abstract, Beta(2, 2)
    from notes on the paper; the pair form is that of MoCHi, Kalantidis et al., arXiv 2010.01028, eq. 5.
    Whether KaLM stops the gradient could not be read, so both ways exist; MoCHi's parents come from a memory
    without gradient, which is ``detach``.
    """

    kind: Literal["pair", "list"] = "pair"
    columns: int = 1
    parents: int = 8
    detach: bool = False
    seed: int = 0

    def chance(self, queries: int) -> Tensor:
        """Uniform numbers in [0, 1): three for lambda and two for the parents of every candidate."""
        return torch.rand(queries, self.columns, 5, generator=torch.Generator().manual_seed(self.seed))


def mixed_scores(
    query_RM: Tensor, document_NM: Tensor, cosine_RN: Tensor, own_RN: Tensor, negative_RN: Tensor,
    chance_RK5: Tensor, mixing: Mixing,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Score of every mixed candidate with its query, and True where there is none.

    Args:
        own_RN, negative_RN: True for the query's own hard negatives, and where a candidate counts.
        chance_RK5: rows of `Mixing.chance`.
    """
    parent_RP, count_R = _parents(cosine_RN.detach(), own_RN & negative_RN, negative_RN, mixing.parents)
    source_NM = document_NM.detach() if mixing.detach else document_NM
    if mixing.kind == "list":
        weight_RP = cosine_RN.detach().gather(1, parent_RP)
        lacking_RP = torch.arange(parent_RP.shape[1], device=parent_RP.device) >= count_R[:, None]
        weight_RP = weight_RP.masked_fill(lacking_RP, float("-inf")).softmax(1).nan_to_num(0.0)
        mixed_RKM = (weight_RP[:, :, None] * source_NM[parent_RP]).sum(1, keepdim=True)
    else:
        lambda_RK1 = chance_RK5[..., :3].median(-1, keepdim=True).values  # of three uniforms: Beta(2, 2)
        first_RK, second_RK = two_of(chance_RK5[..., 3:], count_R)
        first_RKM, second_RKM = (source_NM[parent_RP.gather(1, place)] for place in (first_RK, second_RK))
        mixed_RKM = lambda_RK1 * first_RKM + (1 - lambda_RK1) * second_RKM
    score_RK = (query_RM[:, None] * F.normalize(mixed_RKM, dim=-1)).sum(-1)
    return score_RK, (count_R < 2)[:, None].expand_as(score_RK)


def _parents(cosine_RN: Tensor, own_RN: Tensor, negative_RN: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The candidates that a query's are mixed of, in their order, and their number; column 0 fills up."""
    pool_RN = torch.where(own_RN.sum(1, keepdim=True) >= 2, own_RN, negative_RN)
    score_RP, parent_RP = cosine_RN.masked_fill(~pool_RN, float("-inf")).topk(min(most, cosine_RN.shape[1]))
    real_RP = score_RP > float("-inf")
    # not in the order of scores: rounding of scores must not change which two are drawn
    parent_RP = parent_RP.masked_fill(~real_RP, cosine_RN.shape[1]).sort(1).values
    return parent_RP.masked_fill(parent_RP == cosine_RN.shape[1], 0), real_RP.sum(1)


def two_of(chance_RK2: Tensor, count_R: Tensor) -> tuple[Tensor, Tensor]:
    """Two different places below ``count_R``, all pairs alike; of fewer than two parents, the first."""
    count_R1 = count_R[:, None].clamp_min(1)
    first_RK = (chance_RK2[..., 0] * count_R1).long()
    step_RK = 1 + (chance_RK2[..., 1] * (count_R1 - 1)).long()
    return first_RK, (first_RK + step_RK) % count_R1
