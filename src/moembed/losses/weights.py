"""Weights: how much a query, or a candidate, counts in a contrastive loss. Functions of scores, no gradient.

A mask says who is a negative, a weight how much of one. Both see the scores of some queries with all their
candidates; masks come first. A weight of queries multiplies the losses before their mean over all queries,
which it does not enter: the mean weight is therefore a factor of the step, and is logged. A weight of
candidates multiplies their terms in the denominator; it is returned as its logarithm, which is added to the
score over the temperature. The positive has no weight.

The bodies of the papers could not be read when this was written, only their abstracts and others' accounts of
them, so each docstring says what its form rests on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a weight may look at: the candidates of Q queries, without gradient.

    Attributes:
        cosine_QC: plain scores.
        logit_QC: scores over the temperature with the weights of candidates; -inf where one does not count.
        positive_Q: column of the positive.
        negative_QC: True where a candidate counts as a negative.
        own_QC: True where a candidate is a hard negative of this very query, or made of those.
    """

    cosine_QC: Tensor
    logit_QC: Tensor
    positive_Q: Tensor
    negative_QC: Tensor
    own_QC: Tensor

    @property
    def positive_cosine_Q(self) -> Tensor:
        return self.cosine_QC.gather(1, self.positive_Q[:, None])[:, 0]


Weight = Callable[[Candidates], Tensor]


def focal(seen: Candidates, gamma: float = 0.5) -> Tensor:
    """Of queries: ``w_q = (1 - p_q)^gamma``, p_q the softmax probability of the positive in this loss.

    An example that is right with p = 0.99 keeps a tenth of its loss at gamma 0.5; gamma 0 weighs nothing.

    Source: KaLM-Embedding-V2, arXiv 2506.20923, "focal-style reweighting" in its abstract; the form is that
    of the focal loss, Lin et al., arXiv 1708.02002, eq. 4, gamma from notes on the paper.
    """
    log_p_Q = seen.logit_QC.log_softmax(1).gather(1, seen.positive_Q[:, None])[:, 0]
    return (-torch.expm1(log_p_Q)).clamp_min(0) ** gamma


def hardness(seen: Candidates, alpha: float = 1.0, on: Literal["all", "in_batch", "hard"] = "all") -> Tensor:
    """Of candidates, as logarithms: ``log w_qn = alpha * s_qn`` for negatives, s the cosine.

    Args:
        on: which negatives: all, those of other queries, or the query's own hard ones.

    Source: Lan et al. (LLaVE), arXiv 2503.04812, eq. 5, as sentence-transformers 6 computes it (alpha 9 there
    with ``in_batch``; EmbeddingGemma 5 with ``hard``); RzenEmbed, arXiv 2510.27350, weighs alike by notes on
    it.
    """
    chosen_QC = seen.negative_QC
    if on != "all":
        chosen_QC = chosen_QC & (seen.own_QC if on == "hard" else ~seen.own_QC)
    return (alpha * seen.cosine_QC).masked_fill(~chosen_QC, 0.0)


def margin_driven(seen: Candidates, alpha: float = 1.0, width: float = 0.1) -> Tensor:
    """Of queries: ``w_q = (1 - alpha) + alpha * h_q`` with ``h_q = 2 sigmoid((s_q- - s_q+) / width)``.

    s_q- is the largest score of the query's own hard negatives that count, or, where it has none, of all
    negatives. A tie weighs 1, a query that is wrong up to 2, one that is right by far 0. PEG lets alpha grow
    from 0 to 1 with the run: that is a schedule, see `moembed.training.contrastive.schedules`.

    Source: in the style of PEG, Wu et al., arXiv 2311.11691, whose abstract says that attention to samples
    changes with progress; the form of h is our reading.
    """
    own_QC = seen.own_QC & seen.negative_QC
    chosen_QC = torch.where(own_QC.any(1, keepdim=True), own_QC, seen.negative_QC)
    hardest_Q = seen.cosine_QC.masked_fill(~chosen_QC, float("-inf")).amax(1)
    hardness_Q = 2 * ((hardest_Q - seen.positive_cosine_Q) / width).sigmoid()
    return (1 - alpha) + alpha * hardness_Q


QUERY_WEIGHTS: dict[str, Callable[..., Tensor]] = {"focal": focal, "margin": margin_driven}
CANDIDATE_WEIGHTS: dict[str, Callable[..., Tensor]] = {"hardness": hardness}
WEIGHTS = QUERY_WEIGHTS | CANDIDATE_WEIGHTS


def effective_number(log_weight_QC: Tensor, negative_QC: Tensor) -> Tensor:
    """How many equal negatives weigh like these: ``(sum_n w_n)^2 / sum_n w_n^2``; their count if w is 1.

    Source: Kish, *Survey Sampling* (1965), the effective size of a weighted sample.
    """
    log_weight_QC = log_weight_QC.masked_fill(~negative_QC, float("-inf"))
    number_Q = (2 * log_weight_QC.logsumexp(1) - (2 * log_weight_QC).logsumexp(1)).exp()
    return torch.where(negative_QC.any(1), number_Q, torch.zeros_like(number_Q))
