"""InfoNCE with what recipes may add to it: self-guided masks, weights, more terms in the denominator.

Score, mask and weight are three tensors, made in this order for a block of queries at a time: scores of all
candidates; the mask of known answers; candidates that the model itself holds far nearer than the positive;
weights of candidates; weights of queries. Masks and weights have no gradient, so the gradient of a score is
its weighted softmax, less one at the positive. Blocks are computed again in the backward pass: memory grows
with Q + N instead of Q * N.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moembed.losses.mixing import Mixing, mixed_scores
from moembed.losses.negatives import Mask, held_nearer, masked_entries
from moembed.losses.weights import Candidates, Weight, effective_number

DIRECTIONS = ("query_to_query", "document_to_document")


@dataclass(frozen=True, slots=True)
class Shaping:
    """What is added to InfoNCE. All defaults together are plain InfoNCE, bit for bit.

    Attributes:
        margin: a candidate whose score is above that of the positive plus ``margin`` is no negative.
        candidate_weights, query_weights: see `moembed.losses.weights`; several multiply.
        directions: further terms of the denominator: the query with the other queries, its positive with the
            other positives.
        mixing: further candidates of a query, made of its negatives.
        in_batch: documents and hard negatives of other queries are negatives; False: only the hard negatives
            of the query itself are, and what is mixed of them.
        owner_N: of every hard negative the query it was mined for, of other candidates anything that is no
            query or whose positive it is; None: there are no hard negatives.
    """

    margin: float | None = None
    candidate_weights: tuple[Weight, ...] = ()
    query_weights: tuple[Weight, ...] = ()
    directions: tuple[str, ...] = ()
    mixing: Mixing | None = None
    in_batch: bool = True
    owner_N: Tensor | None = None

    def mirrored(self) -> Shaping:
        """For a loss in which the positives look for their queries: there are no hard negatives then."""
        return replace(self, directions=(), mixing=None, owner_N=None)


@dataclass(slots=True)
class Tally:
    """Sums over the queries of every call of a loss, for the log.

    Attributes:
        effective: negatives per query that count, by weight: see `effective_number`.
        weight: weights of queries.
    """

    queries: float = 0.0
    effective: float = 0.0
    weight: float = 0.0

    def add(self, queries: int, effective: float, weight: float | None = None) -> None:
        self.queries += queries
        self.effective += effective
        self.weight += queries if weight is None else weight

    def count(
        self, mask_QN: Mask | None, row_R: Tensor, positive_Q: Tensor, candidates: int, block: int
    ) -> None:
        """The queries of a loss without weights: its negatives are all candidates that are not masked."""
        masked = 0
        rows = max(1, block // candidates)
        for some_R in torch.split(row_R, rows) if mask_QN is not None else ():
            assert mask_QN is not None
            masked += len(masked_entries(mask_QN, some_R, positive_Q[some_R])[0])
        self.add(len(row_R), len(row_R) * (candidates - 1) - masked)


@dataclass(frozen=True, slots=True)
class Given:
    """The arguments of a loss: unit vectors in fp32, and as in `moembed.losses.contrastive.info_nce`."""

    query_QM: Tensor
    document_NM: Tensor
    positive_Q: Tensor
    mask_QN: Mask | None
    temperature: float | Tensor
    shaping: Shaping
    chance_QK5: Tensor | None = None  # of the mixing


def shaped_info_nce(given: Given, weight_Q: Tensor, block: int, tally: Tally | None = None) -> Tensor:
    """``mean_q w_q * -log( e_q+ / (e_q+ + sum_n w_qn e_qn) )`` with ``e_qn = exp(s_qn / t)``, s the cosine.

    The sum over n runs over all candidates that are not masked, and the further terms of ``directions``; the
    mean is weighted by ``weight_Q``, w_q is no part of its denominator. Without ``in_batch`` the sum runs
    over the hard negatives of the query itself, as in the second stage of NV-Embed (arXiv 2405.17428); a
    query that has none costs nothing and still counts in the mean.

    Args:
        block: most scores held at a time.

    Source: the mask and the further terms are those of Qwen3 Embedding, arXiv 2506.05176, section 2 (margin
    0.1; formula as quoted in public notes on the paper), the mask alone is RzenEmbed's, arXiv 2510.27350.
    Where the paper leaves it open: documents of the third term are the other positives, and a query or a
    positive is left out of the further terms where the mask leaves out their pair (query, other positive).
    """
    width = len(given.document_NM) + len(given.shaping.directions) * len(given.query_QM)
    if mixing := given.shaping.mixing:
        width += 2 * max(mixing.columns, mixing.parents) * given.query_QM.shape[1]
        chance_QK5 = mixing.chance(len(given.query_QM)).to(given.query_QM.device)
        given = replace(given, chance_QK5=chance_QK5)
    blocks = torch.split(weight_Q.nonzero()[:, 0], max(1, block // width))
    total = weight_Q.new_zeros(())
    for row_R in blocks:
        if len(blocks) == 1:
            loss_R, own_R, effective_R = _row_losses(given, row_R)
        else:  # nothing in it is left to chance, so no random state is kept
            loss_R, own_R, effective_R = checkpoint(
                _row_losses, given, row_R, use_reentrant=False, preserve_rng_state=False
            )
        if tally is not None:
            tally.add(len(row_R), float(effective_R.sum()), float(own_R.sum()))
        part = (loss_R * weight_Q[row_R] * own_R).sum()
        total = part if len(blocks) == 1 else total + part
    return total / weight_Q.sum()


def _row_losses(given: Given, row_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of some queries: the loss, the weight and the effective number of negatives."""
    shaping, positive_R = given.shaping, given.positive_Q[row_R]
    cosine_RC, left_out_RC = _scores(given, row_R)
    if shaping.margin is not None:
        left_out_RC = left_out_RC | held_nearer(cosine_RC.detach(), positive_R, shaping.margin)
    own_RC = _own(given, row_R, cosine_RC.shape[1])
    if not shaping.in_batch:
        left_out_RC = left_out_RC | (~own_RC).scatter(1, positive_R[:, None], False)
    if shaping.mixing is not None:
        cosine_RC, left_out_RC, own_RC = _with_mixed(given, row_R, cosine_RC, left_out_RC, own_RC)

    logit_RC = (cosine_RC / given.temperature).masked_fill(left_out_RC, float("-inf"))
    negative_RC = (~left_out_RC).scatter(1, positive_R[:, None], False)
    log_weight_RC = torch.zeros_like(cosine_RC)
    for weigh in shaping.candidate_weights:
        seen = Candidates(cosine_RC.detach(), logit_RC.detach(), positive_R, negative_RC, own_RC)
        log_weight_RC = log_weight_RC + weigh(seen)
    if shaping.candidate_weights:
        logit_RC = logit_RC + log_weight_RC

    weight_R = torch.ones_like(positive_R, dtype=cosine_RC.dtype)
    for weigh in shaping.query_weights:
        seen = Candidates(cosine_RC.detach(), logit_RC.detach(), positive_R, negative_RC, own_RC)
        weight_R = weight_R * weigh(seen)
    loss_R = F.cross_entropy(logit_RC, positive_R, reduction="none")
    return loss_R, weight_R, effective_number(log_weight_RC, negative_RC)


def _scores(given: Given, row_R: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of all terms, and which of them the mask of the loss leaves out."""
    positive_R, query_RM = given.positive_Q[row_R], given.query_QM[row_R]
    cosine_RN = query_RM @ given.document_NM.T
    left_out_RN = torch.zeros_like(cosine_RN, dtype=torch.bool)
    if given.mask_QN is not None:
        left_out_RN[masked_entries(given.mask_QN, row_R, positive_R)] = True
    if not given.shaping.directions:
        return cosine_RN, left_out_RN
    columns, left_out = [cosine_RN], [left_out_RN]
    # of the other queries: those whose positive is no negative of this query, and the query itself
    same_RQ = left_out_RN[:, given.positive_Q] | (given.positive_Q == positive_R[:, None])
    for direction in given.shaping.directions:
        if direction == "query_to_query":
            columns.append(query_RM @ given.query_QM.T)
        else:
            columns.append(given.document_NM[positive_R] @ given.document_NM[given.positive_Q].T)
        left_out.append(same_RQ)
    return torch.cat(columns, 1), torch.cat(left_out, 1)


def _own(given: Given, row_R: Tensor, columns: int) -> Tensor:
    """Which candidates are hard negatives of the query itself."""
    owner_N = given.shaping.owner_N
    if owner_N is None:
        return torch.zeros(len(row_R), columns, dtype=torch.bool, device=row_R.device)
    own_RN = (owner_N == row_R[:, None]).scatter(1, given.positive_Q[row_R, None], False)
    return F.pad(own_RN, (0, columns - own_RN.shape[1]))


def _with_mixed(
    given: Given, row_R: Tensor, cosine_RC: Tensor, left_out_RC: Tensor, own_RC: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with the columns of mixed candidates, which are hard negatives of the query itself."""
    mixing, positive_R, candidates = given.shaping.mixing, given.positive_Q[row_R], len(given.document_NM)
    assert mixing is not None
    assert given.chance_QK5 is not None
    negative_RN = (~left_out_RC[:, :candidates]).scatter(1, positive_R[:, None], False)
    score_RK, none_RK = mixed_scores(
        given.query_QM[row_R], given.document_NM, cosine_RC[:, :candidates], own_RC[:, :candidates],
        negative_RN, given.chance_QK5[row_R], mixing,
    )  # fmt: skip
    cosine_RC = torch.cat([cosine_RC, score_RK], 1)
    left_out_RC, own_RC = torch.cat([left_out_RC, none_RK], 1), torch.cat([own_RC, ~none_RK], 1)
    if given.shaping.margin is not None:
        left_out_RC = left_out_RC | held_nearer(cosine_RC.detach(), positive_R, given.shaping.margin)
    return cosine_RC, left_out_RC, own_RC
