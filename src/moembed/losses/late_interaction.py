"""Late interaction: the score of a query and a document from the vectors of all their tokens.

``by_maxsim`` turns a loss of vectors into one of token vectors: it makes the scores and hands them on as
vectors whose products they are. Masks, weights of scores and queries, triplets, CoSENT and teachers'
rankings work on them as on cosines; what looks at vectors themselves (directions, mixing, a queue) does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from moembed.types import UserError

Reduce = Literal["mean", "sum"]
Loss = Callable[..., Tensor]

BLOCK = 2**23  # most products of tokens held at a time


def maxsim(
    query_TM: Tensor,
    document_TM: Tensor,
    lengths_Q: Sequence[int],
    lengths_N: Sequence[int],
    reduce: Reduce = "mean",
    block: int = BLOCK,
) -> Tensor:
    """``s_qn = sum_i max_j <q_i, d_j>`` over the tokens i of query q and j of document n: ``(Q, N)`` fp32.

    ``mean`` divides by the tokens of the query, so that scores of unit vectors lie in -1..1 whatever its
    length; the order of documents is the same. A query without a token scores 0. Where two tokens of a
    document are equally near, the gradient goes to one of them. Memory grows with query tokens times
    documents, not with pairs of tokens.

    Args:
        query_TM: vectors of the tokens of all queries, end to end; ``lengths_Q`` how many each has.
        document_TM: of all documents, as well.

    Raises:
        UserError: a document without a token, which no query token could be compared with.

    Source: Khattab and Zaharia, *ColBERT*, arXiv 2004.12832, eq. 3. It is ``sentence_transformers.util.
    maxsim``, with ``length_normalize`` for ``mean``, and the ``colbert_scores`` of PyLate, which sums.
    """
    if 0 in lengths_N:
        place = list(lengths_N).index(0)
        raise UserError(f"document {place} (counted from 0) has no token that a query could be compared with")
    best_TN: Tensor = _BestToken.apply(  # type: ignore[no-untyped-call]
        query_TM.float(), document_TM.float(), tuple(lengths_N), block
    )
    text_T = torch.repeat_interleave(torch.tensor(lengths_Q, dtype=torch.long)).to(query_TM.device)
    score_QN = best_TN.new_zeros(len(lengths_Q), len(lengths_N)).index_add(0, text_T, best_TN)
    if reduce == "sum":
        return score_QN
    return score_QN / score_QN.new_tensor([max(length, 1) for length in lengths_Q])[:, None]


def by_maxsim(
    loss: Loss, lengths_Q: Sequence[int], lengths_N: Sequence[int], reduce: Reduce = "mean"
) -> Loss:
    """A loss of token vectors: ``loss`` as in `moembed.losses.contrastive`, of the scores of ``maxsim``.

    The scores are given as queries whose coordinates are documents, ``<s_q, e_n> = s_qn``, which costs
    ``Q N²`` products beside those of the tokens.
    """

    def late(query_TM: Tensor, document_TM: Tensor, *arguments: Any, **options: Any) -> Tensor:
        score_QN = maxsim(query_TM, document_TM, lengths_Q, lengths_N, reduce)
        axis_NN = torch.eye(len(lengths_N), device=score_QN.device)
        return loss(score_QN, axis_NN, *arguments, **options)

    return late


class _BestToken(torch.autograd.Function):
    """``max_j <q_t, d_j>`` over the tokens of each document, for every query token: ``(T, N)``.

    Only which token won is kept for the backward pass, so pairs of tokens exist a block at a time.
    """

    @staticmethod
    def forward(
        ctx: Any, query_TM: Tensor, document_TM: Tensor, lengths_N: tuple[int, ...], block: int
    ) -> Tensor:
        device = query_TM.device
        start_N1 = torch.tensor([0, *accumulate(lengths_N)][:-1], device=device)[:, None]
        length_N1 = torch.tensor(lengths_N, device=device)[:, None]
        place_1L = torch.arange(max(lengths_N), device=device)[None]
        # the tokens of every document, its last one again and again behind them
        token_NL = start_N1 + torch.minimum(place_1L, length_N1 - 1)
        rows = max(1, block // token_NL.numel())
        best_TN = query_TM.new_empty(len(query_TM), len(lengths_N))
        winner_TN = torch.empty(best_TN.shape, dtype=torch.int32, device=device)
        for start in range(0, len(query_TM), rows):
            some = slice(start, start + rows)
            near_RNL = (query_TM[some] @ document_TM.T)[:, token_NL]
            best_TN[some], place_RN = near_RNL.max(dim=2)
            winner_TN[some] = (start_N1.T + torch.minimum(place_RN, length_N1.T - 1)).int()
        ctx.save_for_backward(query_TM, document_TM, winner_TN)
        ctx.rows = max(1, block // max(len(document_TM), 1))
        return best_TN

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        query_TM, document_TM, winner_TN = ctx.saved_tensors
        query_gradient_TM = torch.empty_like(query_TM)
        document_gradient_TM = torch.zeros_like(document_TM)
        for start in range(0, len(query_TM), ctx.rows):
            some = slice(start, start + ctx.rows)
            # no token is of two documents, so no place is written twice
            weight_RT = query_TM.new_zeros(len(winner_TN[some]), len(document_TM))
            weight_RT.scatter_(1, winner_TN[some].long(), outer[0][some])
            query_gradient_TM[some] = weight_RT @ document_TM
            document_gradient_TM.addmm_(weight_RT.T, query_TM[some])
        return query_gradient_TM, document_gradient_TM, None, None
