"""The losses of a reranker: equal to their formulas, list by list."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from moembed.losses.reranking import RERANKING_LOSSES, binary_cross_entropy, listwise_softmax


def lists(sizes: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random scores of lists of these lengths; the right document stands anywhere in its own."""
    generator = torch.Generator().manual_seed(seed)
    query_P = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    score_P = torch.randn(len(query_P), generator=generator, dtype=torch.float64) * 30
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    positive_P = torch.zeros(len(query_P), dtype=torch.bool)
    for start, size in zip(starts, sizes, strict=True):
        positive_P[start + int(torch.randint(size, (), generator=generator))] = True
    return score_P, query_P, positive_P


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 9))
def test_both_losses_are_their_formulas(sizes: list[int], seed: int) -> None:
    score_P, query_P, positive_P = lists(sizes, seed)
    softmax, judged = [], []
    for query in range(len(sizes)):
        mine = query_P == query
        right = positive_P[mine].nonzero()[0]
        softmax.append(F.cross_entropy(score_P[mine][None], right))
        target = positive_P[mine].double()
        judged.append(F.binary_cross_entropy_with_logits(score_P[mine], target))
    queries = len(sizes)
    assert torch.allclose(
        listwise_softmax(score_P, query_P, positive_P, queries), torch.stack(softmax).mean()
    )
    assert torch.allclose(
        binary_cross_entropy(score_P, query_P, positive_P, queries), torch.stack(judged).mean()
    )


def test_weights_split_a_batch_between_processes() -> None:
    score_P, query_P, positive_P = lists([2, 3, 1, 4])
    weight_Q = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    for loss in RERANKING_LOSSES.values():
        whole = loss(score_P, query_P, positive_P, 4)
        parts = [loss(score_P, query_P, positive_P, 4, weight) / 2 for weight in (weight_Q, 1 - weight_Q)]
        assert torch.allclose(sum(parts), whole)


def test_large_scores_stay_finite_and_a_list_of_one_costs_nothing() -> None:
    score_P = torch.tensor([500.0, -500.0, 3.0], requires_grad=True)
    query_P, positive_P = torch.tensor([0, 0, 1]), torch.tensor([False, True, True])
    loss = listwise_softmax(score_P, query_P, positive_P, 2)
    assert loss.item() == 500.0
    (gradient_P,) = torch.autograd.grad(loss, score_P)
    assert torch.allclose(gradient_P, torch.tensor([0.5, -0.5, 0.0]))
