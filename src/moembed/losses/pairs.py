"""Losses and masks of pairs that carry a score or a label: how alike two texts are, which class they are of.

A score becomes CoSENT, a loss of its own; a label becomes a mask, in the place of `Duplicates` wherever a
contrastive loss takes one: texts of one class are no negatives of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moembed.losses.negatives import Duplicates, Entries, equal_numbers

TEMPERATURE = 0.05  # of CoSENT: sentence-transformers has the scale 20


def cosent(
    query_QM: Tensor, document_QM: Tensor, score_Q: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """``log(1 + sum over pairs (i, j) with y_i > y_j of exp((s_j - s_i) / t))``, s the cosine of a pair.

    A pair of a higher score y shall have the higher cosine; by how much the scores differ does not count, and
    pairs of equal scores are not compared. Where all scores are equal the loss is 0. Memory grows with Q, not
    with Q²: sorted by score, the pairs below i are a prefix, and prefixes are summed once.

    Args:
        query_QM, document_QM: unit vectors of the two texts of every pair.
        score_Q: how alike they are, on any scale.
        temperature: t.

    Source: Huang et al., *CoSENT* (2024), and the code of sentence-transformers' CoSENTLoss, whose t is 1/20.
    QZhou-Embedding (arXiv 2508.21632) has it for pairs with scores.
    """
    score_Q, order_Q = score_Q.sort()
    cosine_Q = (query_QM.float() * document_QM.float()).sum(-1)[order_Q] / temperature
    prefix_Q = cosine_Q.logcumsumexp(0)
    nothing = cosine_Q.new_full((1,), float("-inf"))
    # of every pair, how many have a lower score: the sum over them is that prefix
    lower_Q = torch.searchsorted(score_Q, score_Q)
    below_Q = torch.cat([nothing, prefix_Q])[lower_Q]
    return torch.cat([cosine_Q.new_zeros(1), below_Q - cosine_Q]).logsumexp(0)


def by_scores(score_Q: Tensor, temperature: float = TEMPERATURE) -> Callable[..., Tensor]:
    """CoSENT in the signature of contrastive losses: documents beyond the first Q, masks, weights and
    temperatures are not looked at. Every process computes the whole of it, and its caller takes a share."""

    def loss(query_QM: Tensor, document_NM: Tensor, *arguments: object, **options: object) -> Tensor:
        on_device_Q = score_Q.to(query_QM.device)
        return cosent(query_QM, document_NM[: len(query_QM)], on_device_Q, temperature)

    return loss


@dataclass(frozen=True, slots=True)
class SameLabel:
    """Duplicates, and every candidate of the query's own class: neither is a negative.

    ``class_Q`` and ``class_N`` are numbers of classes, of the queries and of all candidates. In-batch
    documents and the hard negatives of other queries are compared alike.

    Source: QZhou-Embedding (arXiv 2508.21632), which trains tasks of classification and clustering so. We had
    its abstract and model card, not the formula: whether it also compares two queries is not settled here.
    """

    known: Duplicates
    class_Q: Tensor
    class_N: Tensor

    @property
    def positive_Q(self) -> Tensor:
        return self.known.positive_Q

    def true_entries(self, row_R: Tensor) -> Entries:
        """As `Duplicates.true_entries`; an entry that both mask is listed once."""
        candidates = len(self.class_N)
        known_P, known_candidate_P = self.known.true_entries(row_R)
        same_P, same_candidate_P = equal_numbers(self.class_Q[row_R], self.class_N)
        place = torch.cat([known_P * candidates + known_candidate_P, same_P * candidates + same_candidate_P])
        place = torch.unique(place)
        return torch.div(place, candidates, rounding_mode="floor"), place % candidates

    def mirror(self) -> SameLabel:
        """The same relation seen from the positives, each of which looks for its query."""
        return SameLabel(self.known.mirror(), self.class_N[self.known.positive_Q], self.class_Q)

    def to(self, device: torch.device) -> SameLabel:
        return SameLabel(self.known.to(device), self.class_Q.to(device), self.class_N.to(device))
