"""Nested losses against the sum written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moembed.losses.contrastive import info_nce
from moembed.losses.negatives import Duplicates
from moembed.losses.nested import by_depth, matryoshka


def vectors(seed: int, rows: int, width: int = 6) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


@given(st.integers(0, 10**6), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.booleans())
def test_matryoshka_cuts_then_normalises_then_sums(seed: int, dims: list[int], weighted: bool) -> None:
    query_QM, document_NM = vectors(seed, 3), vectors(seed + 1, 5)
    weights = [1.0 + i for i in range(len(dims))]
    expected = 0.0
    for dim, weight in zip(dims, weights, strict=True):
        query, document = (
            v[:, :dim] / v[:, :dim].norm(dim=-1, keepdim=True) for v in (query_QM, document_NM)
        )
        score_QN = query @ document.T / 0.1
        term = float((score_QN.logsumexp(-1) - score_QN.diagonal()).mean())
        expected += (weight if weighted else 1) * term
    loss = matryoshka(info_nce, dims, weights if weighted else None)
    found = loss(query_QM, document_NM, torch.arange(3), temperature=0.1)
    assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_whole_vector_alone_is_the_plain_loss() -> None:
    query_QM, document_NM = vectors(0, 4), vectors(1, 4)
    own_Q = torch.arange(4)
    mask = Duplicates.of(torch.tensor([1, 2, 1, 3]), torch.tensor([1, 2, 3, 4]), own_Q)
    plain = info_nce(query_QM, document_NM, own_Q, mask)
    torch.testing.assert_close(matryoshka(info_nce, [6])(query_QM, document_NM, own_Q, mask), plain)


def test_depths_are_weighed_and_those_without_weight_left_out() -> None:
    query, document = ({depth: vectors(seed + depth, 4) for depth in (1, 2, 3)} for seed in (0, 10))
    own_Q = torch.arange(4)
    expected = 0.5 * info_nce(query[1], document[1], own_Q) + 2 * info_nce(query[3], document[3], own_Q)
    found = by_depth(info_nce, {1: 0.5, 3: 2.0})(query, document, own_Q)
    torch.testing.assert_close(found, expected)


def test_nests_nest() -> None:
    query, document = ({depth: vectors(seed + depth, 4) for depth in (1, 2)} for seed in (0, 10))
    loss = by_depth(matryoshka(info_nce, [6, 2]), {1: 1.0, 2: 1.0})
    terms = [
        info_nce(F.normalize(query[depth][:, :dim]), F.normalize(document[depth][:, :dim]), torch.arange(4))
        for depth in (1, 2)
        for dim in (6, 2)
    ]
    torch.testing.assert_close(loss(query, document, torch.arange(4)), sum(terms))
