"""Losses of a reranker: one document of every query is right, the others of its list are not.

All share one signature, ``loss(score_P, query_P, positive_P, queries, weight_Q=None)``: candidate p belongs
to the list of query ``query_P[p]`` and is right where ``positive_P`` says so. Queries of weight 0 cost
nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def listwise_softmax(
    score_P: Tensor, query_P: Tensor, positive_P: Tensor, queries: int, weight_Q: Tensor | None = None
) -> Tensor:
    """``mean_q -log( exp(s_q+) / sum_p exp(s_qp) )``, the sum over the list of q, its right one included.

    A list without a wrong document costs nothing and teaches nothing.

    Args:
        score_P: logits.
        queries: number of lists; each has exactly one right document.
        weight_Q: weight of each query in the mean.

    Source: the list-wise softmax of Cao et al., *Learning to Rank* (ICML 2007), of one right document; as
    localised contrastive estimation in Gao et al., arXiv 2101.08751.
    """
    # the largest score of each list is taken off first, so that no exponential overflows
    largest_Q = score_P.new_full((queries,), float("-inf"))
    largest_Q = largest_Q.scatter_reduce(0, query_P, score_P.detach(), "amax")
    shifted_P = score_P - largest_Q[query_P]
    total_Q = score_P.new_zeros(queries).index_add(0, query_P, shifted_P.exp())
    right_Q = score_P.new_zeros(queries).index_add(0, query_P, shifted_P * positive_P)
    return _mean(total_Q.log() - right_Q, weight_Q)


def binary_cross_entropy(
    score_P: Tensor, query_P: Tensor, positive_P: Tensor, queries: int, weight_Q: Tensor | None = None
) -> Tensor:
    """``mean_q mean_p -[ y log sigmoid(s) + (1 - y) log sigmoid(-s) ]``: every list weighs the same.

    Where all lists are equally long it is the mean over all pairs.

    Source: Nogueira and Cho, arXiv 1901.04085.
    """
    loss_P = F.binary_cross_entropy_with_logits(score_P, positive_P.to(score_P.dtype), reduction="none")
    zeros_Q = score_P.new_zeros(queries)
    count_Q = zeros_Q.index_add(0, query_P, torch.ones_like(score_P))
    return _mean(zeros_Q.index_add(0, query_P, loss_P) / count_Q, weight_Q)


def _mean(loss_Q: Tensor, weight_Q: Tensor | None) -> Tensor:
    if weight_Q is None:
        return loss_Q.mean()
    return (loss_Q * weight_Q).sum() / weight_Q.sum()


RERANKING_LOSSES: dict[str, Callable[..., Tensor]] = {
    "listwise": listwise_softmax,
    "bce": binary_cross_entropy,
}
