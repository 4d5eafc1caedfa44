"""Losses of pairs with scores, and masks of labels: against a named library, double loops and matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from moembed.losses.contrastive import LOSSES, info_nce
from moembed.losses.negatives import Duplicates
from moembed.losses.pairs import SameLabel, by_scores, cosent

SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.5, -3.0]), min_size=1, max_size=12)


def vectors(count: int, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [normalize(torch.randn(count, width, generator=generator), dim=-1) for _ in range(2)]
    return made[0].requires_grad_(), made[1].requires_grad_()


@given(SCORES)
def test_cosent_is_that_of_sentence_transformers(scores: list[float]) -> None:
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    score_Q = torch.tensor(scores)
    query_QM, document_QM = vectors(len(scores))
    ours = cosent(query_QM, document_QM, score_Q, 0.05)
    gradients = torch.autograd.grad(ours, [query_QM, document_QM])
    library = CoSENTLoss(torch.nn.Identity(), scale=20.0)  # type: ignore[arg-type]
    theirs = library.compute_loss_from_embeddings([query_QM, document_QM], score_Q)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6, rel=1e-6)
    # ours takes unit vectors, theirs makes them: only what lies along the sphere is comparable
    for own, other, unit in zip(
        gradients, torch.autograd.grad(theirs, [query_QM, document_QM]), (query_QM, document_QM), strict=True
    ):
        along = own - (own * unit).sum(-1, keepdim=True) * unit
        torch.testing.assert_close(along, other, atol=1e-5, rtol=1e-4)


@given(SCORES, st.sampled_from([0.02, 0.05, 1.0]))
def test_cosent_is_its_double_loop(scores: list[float], temperature: float) -> None:
    query_QM, document_QM = vectors(len(scores), seed=1)
    cosine_Q = (query_QM.double() * document_QM.double()).sum(-1)
    total = torch.ones((), dtype=torch.float64)
    for i, higher in enumerate(scores):
        for j, lower in enumerate(scores):
            if higher > lower:
                total = total + ((cosine_Q[j] - cosine_Q[i]) / temperature).exp()
    found = cosent(query_QM, document_QM, torch.tensor(scores), temperature)
    assert found.item() == pytest.approx(total.log().item(), rel=1e-4, abs=1e-5)


def test_equal_scores_teach_nothing() -> None:
    query_QM, document_QM = vectors(4)
    loss = cosent(query_QM, document_QM, torch.ones(4))
    gradient = torch.autograd.grad(loss, query_QM)[0]
    assert (loss.item(), gradient.abs().max().item()) == (0.0, 0.0)


def test_as_a_contrastive_loss_it_looks_at_the_two_texts_alone() -> None:
    query_QM, document_QM = vectors(4)
    score_Q = torch.tensor([3.0, 1.0, 2.0, 1.0])
    more_NM = torch.cat([document_QM, vectors(3, seed=2)[0]])
    found = by_scores(score_Q, 0.1)(query_QM, more_NM, torch.arange(4), None, None, temperature=9.0)
    assert torch.equal(found, cosent(query_QM, document_QM, score_Q, 0.1))


LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=8)


@given(LABELS, LABELS, st.data())
def test_a_label_masks_what_a_matrix_of_labels_masks(
    own: list[int], wrong: list[int], data: st.DataObject
) -> None:
    queries, candidates = len(own), len(own) + len(wrong)
    text_N = torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=candidates, max_size=candidates)))
    query_Q = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=queries, max_size=queries)))
    known = Duplicates.of(query_Q, text_N, torch.arange(queries))
    class_N = torch.tensor(own + wrong)
    mask = SameLabel(known, class_N[:queries], class_N)
    row_R = torch.tensor(data.draw(st.permutations(range(queries)))[: max(1, queries // 2)])

    def matrix(rows: Tensor) -> Tensor:
        found = torch.zeros(len(rows), candidates, dtype=torch.bool)
        found[known.true_entries(rows)] = True
        return found | (class_N[rows][:, None] == class_N[None])

    found = torch.zeros(len(row_R), candidates, dtype=torch.bool)
    entries = mask.true_entries(row_R)
    found[entries] = True
    assert torch.equal(found, matrix(row_R))
    assert len(entries[0]) == int(found.sum())  # none is listed twice
    mirrored = torch.zeros(queries, queries, dtype=torch.bool)
    mirrored[mask.mirror().true_entries(torch.arange(queries))] = True
    assert torch.equal(mirrored, matrix(torch.arange(queries))[:, :queries].T)


@pytest.mark.parametrize("kind", sorted({"info_nce", "symmetric_info_nce"} & set(LOSSES)))
def test_the_same_label_is_no_negative(kind: str) -> None:
    query_QM, document_QM = vectors(4)
    negative_QM = vectors(2, seed=3)[0].detach()
    document_NM = torch.cat([document_QM.detach(), negative_QM]).requires_grad_()
    class_N = torch.tensor([0, 1, 0, 1, 0, 0])
    known = Duplicates.of(torch.arange(4), torch.arange(6), torch.arange(4))
    mask = SameLabel(known, class_N[:4], class_N)
    loss = LOSSES[kind](query_QM, document_NM, torch.arange(4), mask, torch.tensor([1.0, 0.0, 0.0, 0.0]))
    document_gradient = torch.autograd.grad(loss, document_NM)[0].abs().sum(-1)
    assert document_gradient[[2, 4, 5]].max() == 0  # of the first query's class
    assert document_gradient[[0, 1, 3]].min() > 0
    matrix = class_N[:4, None] == class_N[None]
    assert torch.equal(
        loss, LOSSES[kind](query_QM, document_NM, torch.arange(4), matrix, torch.tensor([1.0, 0, 0, 0]))
    )


def test_labels_of_which_none_repeats_change_nothing() -> None:
    query_QM, document_QM = vectors(4)
    known = Duplicates.of(torch.arange(4), torch.tensor([0, 1, 1, 2]), torch.arange(4))
    class_N = torch.arange(4)
    plain = info_nce(query_QM, document_QM, torch.arange(4), known)
    masked = info_nce(query_QM, document_QM, torch.arange(4), SameLabel(known, class_N, class_N))
    assert torch.equal(plain, masked)
