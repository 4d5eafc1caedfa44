"""Masks that say which candidates are not negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Entries = tuple[Tensor, Tensor]  # row and column of every True


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Candidates that are known to answer a query although they are not its own positive.

    Candidate n, document or hard negative, is one when it has the text of a positive of any query with q's
    text, q itself included. Texts are compared by number, equal texts alike, never by vector: dropout makes
    equal texts differ, and near-equal vectors are what training is about.

    The bool ``(Q, N)`` matrix that this means is never made; ``true_entries`` lists those of some rows.
    """

    query_Q: Tensor
    text_N: Tensor
    positive_Q: Tensor

    @classmethod
    def of(cls, query_hash_Q: Tensor, document_hash_N: Tensor, positive_Q: Tensor) -> Duplicates:
        query_Q, text_N = (
            torch.unique(hashes, return_inverse=True)[1] for hashes in (query_hash_Q, document_hash_N)
        )
        return cls(query_Q, text_N, positive_Q)

    def true_entries(self, row_R: Tensor) -> Entries:
        """Place in ``row_R`` and candidate of every True entry of these rows, the positives among them."""
        place_P, twin_P = equal_numbers(self.query_Q[row_R], self.query_Q)
        texts = int(self.text_N.max()) + 1
        answer_P = torch.unique(place_P * texts + self.text_N[self.positive_Q[twin_P]])
        found_P, candidate_P = equal_numbers(answer_P % texts, self.text_N)
        return torch.div(answer_P, texts, rounding_mode="floor")[found_P], candidate_P

    def mirror(self) -> Duplicates:
        """The same relation seen from the positives, each of which looks for its query."""
        number_Q = torch.arange(len(self.query_Q), device=self.query_Q.device)
        return Duplicates.of(self.text_N[self.positive_Q], self.query_Q, number_Q)

    def to(self, device: torch.device) -> Duplicates:
        return Duplicates(self.query_Q.to(device), self.text_N.to(device), self.positive_Q.to(device))


class Listed(Protocol):
    """A mask that is never made as a matrix: `Duplicates`, and what adds to them."""

    def true_entries(self, row_R: Tensor) -> Entries:
        """Place in ``row_R`` and candidate of every True entry of these rows, the positives among them."""

    def mirror(self) -> Listed:
        """The same relation seen from the positives, each of which looks for its query."""


Mask = Tensor | Listed


def masked_entries(mask_QN: Mask, row_R: Tensor, positive_R: Tensor) -> Entries:
    """Where ``mask_QN[row_R]`` is True, except at the positives, which always count."""
    if isinstance(mask_QN, Tensor):
        place_P, candidate_P = mask_QN[row_R].nonzero(as_tuple=True)
    else:
        place_P, candidate_P = mask_QN.true_entries(row_R)
    negative_P = candidate_P != positive_R[place_P]
    return place_P[negative_P], candidate_P[negative_P]


def held_nearer(cosine_QC: Tensor, positive_Q: Tensor, margin: float) -> Tensor:
    """True where ``s_qn > s_q+ + margin`` and n is not the positive: probably an answer that is not labelled.

    The model's own scores decide, so a mask of this kind needs no guide and changes as the model learns.
    Source: Qwen3 Embedding, arXiv 2506.05176, section 2, with margin 0.1.
    """
    bound_Q1 = cosine_QC.gather(1, positive_Q[:, None]) + margin
    return (cosine_QC > bound_Q1).scatter(1, positive_Q[:, None], False)


def equal_numbers(key_A: Tensor, number_B: Tensor) -> Entries:
    """All pairs (a, b) with ``key_A[a] == number_B[b]``; both hold numbers as ``unique`` gives them."""
    order_B = number_B.argsort(stable=True)
    count_U = torch.bincount(number_B, minlength=int(key_A.max()) + 1)
    start_A, count_A = (count_U.cumsum(0) - count_U)[key_A], count_U[key_A]
    a_P = torch.arange(len(key_A), device=key_A.device).repeat_interleave(count_A)
    within_P = torch.arange(len(a_P), device=key_A.device) - (count_A.cumsum(0) - count_A)[a_P]
    return a_P, order_B[start_A[a_P] + within_P]
