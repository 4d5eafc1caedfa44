"""Trained signs: their loss, their gradient, and terms against slow loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moembed.losses.binary import SignThrough, correlation, imbalance, signs, with_signs
from moembed.losses.contrastive import info_nce, symmetric_info_nce
from moembed.losses.nested import shorten
from moembed.losses.shaped import Tally


def random(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def test_the_sign_passes_gradients_up_to_one_and_none_beyond() -> None:
    z = torch.tensor([-1.5, -1.0, -0.2, 0.0, 0.7, 1.0, 1.1], requires_grad=True)
    sign = SignThrough.apply(z)  # type: ignore[no-untyped-call]
    assert sign.tolist() == [-1, -1, -1, -1, 1, 1, 1]
    sign.sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_signs_are_of_the_first_coordinates_whatever_the_length() -> None:
    vector_BM = random(5, 8)
    assert torch.equal(signs(vector_BM, 8), torch.where(vector_BM > 0, 1.0, -1.0))
    assert torch.equal(signs(1e-3 * vector_BM, 3), signs(vector_BM, 8)[:, :3])


@pytest.mark.parametrize("of_signs", [info_nce, symmetric_info_nce])
def test_the_loss_of_signs_stands_beside_that_of_floats(of_signs: object) -> None:
    query_QM, document_NM, positive_Q = shorten(random(4, 8), 8), shorten(random(6, 8, 1), 8), torch.arange(4)
    loss = of_signs
    assert callable(loss)
    both = with_signs(loss, loss, bits=6, weight=0.5)(query_QM, document_NM, positive_Q, temperature=0.1)
    cosine_QN = signs(query_QM, 6) @ signs(document_NM, 6).T / 6
    rows = torch.nn.functional.cross_entropy(cosine_QN / 0.1, positive_Q)
    if of_signs is symmetric_info_nce:
        columns = torch.nn.functional.cross_entropy(cosine_QN.T[:4] / 0.1, positive_Q)
        rows = (rows + columns) / 2
    plain = loss(query_QM, document_NM, positive_Q, temperature=0.1)
    torch.testing.assert_close(both, plain + 0.5 * rows)
    none = with_signs(loss, loss, bits=6, weight=0.0)(query_QM, document_NM, positive_Q, temperature=0.1)
    assert torch.equal(none, plain)


def test_negatives_are_counted_once() -> None:
    query_QM, document_NM, positive_Q = shorten(random(4, 8), 8), shorten(random(6, 8, 1), 8), torch.arange(4)
    alone, beside = Tally(), Tally()
    info_nce(query_QM, document_NM, positive_Q, tally=alone)
    with_signs(info_nce, info_nce, 8, 1.0)(query_QM, document_NM, positive_Q, tally=beside)
    assert (alone.queries, alone.effective) == (beside.queries, beside.effective)


@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 1000))
def test_balance_and_correlation_are_those_of_slow_loops(texts: int, bits: int, seed: int) -> None:
    signs_BP = signs(random(texts, bits, seed), bits)
    means = [sum(signs_BP[t, i].item() for t in range(texts)) / texts for i in range(bits)]
    assert imbalance(signs_BP).item() == pytest.approx(sum(mean**2 for mean in means) / bits, abs=1e-6)
    pairs = [
        (sum((signs_BP[t, i] * signs_BP[t, j]).item() for t in range(texts)) / texts) ** 2
        for i in range(bits)
        for j in range(bits)
        if i != j
    ]
    expected = sum(pairs) / len(pairs) if pairs else 0
    assert correlation(signs_BP).item() == pytest.approx(expected, abs=1e-5)


def test_the_terms_part_bits_that_agree() -> None:
    free_BM = random(64, 6).mul(0.3).add(0.6)
    free_BM[:, 1] = free_BM[:, 0]
    before = signs(free_BM, 6)
    free_BM.requires_grad_()
    optimizer = torch.optim.SGD([free_BM], lr=3.0)
    for _ in range(40):
        bit_BP = SignThrough.apply(free_BM)  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        (imbalance(bit_BP) + correlation(bit_BP)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = SignThrough.apply(free_BM.detach())  # type: ignore[no-untyped-call]
    assert imbalance(after) < 0.2 * imbalance(before)
    assert correlation(after) < correlation(before)
