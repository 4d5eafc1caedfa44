"""The triplet loss against slow loops and against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moembed.losses import triplet as module
from moembed.losses.negatives import Duplicates
from moembed.losses.shaped import Tally
from moembed.losses.triplet import Choice, triplet

OWNER = torch.tensor([0, 1, 2, 3, 0, 0, 2])


def unit(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 4, generator=generator), dim=-1)


def test_equal_to_torchs_own() -> None:
    """One hard negative each."""
    query_QM, document_QM, hard_QM = (unit(5, seed).requires_grad_() for seed in (1, 2, 3))
    distance = lambda a, b: 1 - F.cosine_similarity(a, b)  # noqa: E731
    options = {"distance_function": distance, "margin": 0.3}
    expected = F.triplet_margin_with_distance_loss(query_QM, document_QM, hard_QM, **options)
    choice = Choice(0.3, owner_N=torch.arange(5).repeat(2))
    found = triplet(query_QM, torch.cat([document_QM, hard_QM]), torch.arange(5), choice=choice)
    torch.testing.assert_close(found, expected)
    assert 0 < found.item() < 1
    assert torch.autograd.grad(found, hard_QM)[0].ne(0).any()


@given(
    st.integers(0, 10**6), st.sampled_from(["own", "hardest"]), st.sampled_from([None, -0.1, 0.3]),
    st.sampled_from([2**22, 10]),
)  # fmt: skip
def test_equal_to_the_slow_loop(seed: int, negatives: str, mask_margin: float | None, block: int) -> None:
    vectors = [unit(4, seed).requires_grad_(), unit(7, seed + 1).requires_grad_()]
    known = Duplicates.of(torch.tensor([5, 6, 5, 7]), torch.tensor([1, 2, 3, 4, 2, 4, 2]), torch.arange(4))
    masked_QN = torch.zeros(4, 7, dtype=torch.bool)
    masked_QN[known.true_entries(torch.arange(4))] = True
    weight_Q = torch.tensor([1.0, 0.5, 0.0, 2.0])
    total, used = torch.zeros(()), 0
    for q in range(4):
        positive = vectors[0][q] @ vectors[1][q]
        scores = {n: vectors[0][q] @ vectors[1][n] for n in range(7) if n != q and not masked_QN[q, n]}
        if mask_margin is not None:
            scores = {n: s for n, s in scores.items() if s <= positive + mask_margin}
        chosen = [s for n, s in scores.items() if OWNER[n] == q and negatives == "own"]
        chosen = chosen or sorted(scores.values(), key=lambda score: score.item())[-1:]
        used += len(chosen) if weight_Q[q] else 0
        for score in chosen:
            total = total + weight_Q[q] * (score - positive + 0.2).clamp_min(0) / len(chosen)
    expected = total / weight_Q.sum()
    choice = Choice(0.2, negatives, mask_margin, OWNER)  # type: ignore[arg-type]
    tally = Tally()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        found = triplet(*vectors, torch.arange(4), known, weight_Q, choice=choice, tally=tally)
    torch.testing.assert_close(found, expected)
    assert (tally.queries, tally.effective) == (3, used)
    if expected.requires_grad and expected.item() > 0:
        for one, other in zip(
            torch.autograd.grad(found, vectors), torch.autograd.grad(expected, vectors), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_without_any_negative_it_costs_nothing() -> None:
    vectors = unit(2, 1).requires_grad_(), unit(2, 2).requires_grad_()
    loss = triplet(*vectors, torch.arange(2), torch.ones(2, 2, dtype=torch.bool))
    assert float(loss) == 0.0
    assert all(gradient.eq(0).all() for gradient in torch.autograd.grad(loss, vectors))
