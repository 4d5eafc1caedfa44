"""MaxSim over ragged tokens: a double loop, sentence-transformers' function, losses of its scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moembed.losses.contrastive import LOSSES
from moembed.losses.late_interaction import Reduce, by_maxsim, maxsim
from moembed.losses.nested import matryoshka
from moembed.losses.pairs import by_scores
from moembed.losses.score_distillation import score_kl
from moembed.types import UserError


def rows(lengths: list[int], seed: int, width: int = 8) -> Tensor:
    drawn = torch.randn(sum(lengths), width, generator=torch.Generator().manual_seed(seed))
    return F.normalize(drawn, dim=-1).requires_grad_()


def slow(query_TM: Tensor, document_TM: Tensor, queries: list[int], documents: list[int]) -> Tensor:
    """The sum over the tokens of a query, one product at a time."""
    found = []
    for own in query_TM.split(queries):
        for other in document_TM.split(documents):
            best = [torch.stack([q @ d for d in other]).max() for q in own]
            found.append(sum(best, torch.zeros(())))
    return torch.stack(found).reshape(len(queries), len(documents))


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.sampled_from(["mean", "sum"]),
    st.sampled_from([1, 7, 40, 10_000]),
)
def test_scores_and_gradients_are_those_of_a_double_loop(
    queries: list[int], documents: list[int], reduce: Reduce, block: int
) -> None:
    query_TM, document_TM = rows(queries, 1), rows(documents, 2)
    weight_QN = torch.randn(len(queries), len(documents), generator=torch.Generator().manual_seed(3))
    found = maxsim(query_TM, document_TM, queries, documents, reduce, block)
    expected = slow(query_TM, document_TM, queries, documents)
    if reduce == "mean":
        expected = expected / torch.tensor(queries).clamp(min=1)[:, None]
    torch.testing.assert_close(found, expected)
    if not sum(queries):
        return
    gradients = torch.autograd.grad((found * weight_QN).sum(), [query_TM, document_TM])
    right = torch.autograd.grad((expected * weight_QN).sum(), [query_TM, document_TM])
    for one, other in zip(gradients, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mean", [True, False])
def test_it_is_the_function_of_sentence_transformers(mean: bool) -> None:
    from sentence_transformers.util import maxsim as theirs

    queries, documents = [3, 1, 5], [4, 2, 7, 1]
    query_TM, document_TM = rows(queries, 4).detach(), rows(documents, 5).detach()
    found = maxsim(query_TM, document_TM, queries, documents, "mean" if mean else "sum")
    right = theirs(list(query_TM.split(queries)), list(document_TM.split(documents)), length_normalize=mean)
    torch.testing.assert_close(found, right)


def test_a_document_without_a_token_is_refused() -> None:
    with pytest.raises(UserError, match=r"document 1 .* has no token"):
        maxsim(rows([1], 0), rows([2], 0), [1], [2, 0])


QUERIES, DOCUMENTS = [2, 3, 1], [4, 1, 3, 2, 5]


def _by_hand(kind: str, score_QN: Tensor) -> Tensor:
    """Losses of a matrix of scores, written out."""
    logit_QN, own = score_QN / 0.1, torch.arange(3)
    if kind == "symmetric_info_nce":
        return (F.cross_entropy(logit_QN, own) + F.cross_entropy(logit_QN[:, :3].T, own)) / 2
    if kind == "triplet":  # the hardest wrong one, cosine margin 0.2
        wrong_QN = score_QN.masked_fill(torch.eye(3, 5).bool(), -9)
        return (wrong_QN.max(1).values - score_QN.diagonal() + 0.2).relu().mean()
    return F.cross_entropy(logit_QN, own)


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_every_kind_of_loss_takes_the_scores(kind: str) -> None:
    query_TM, document_TM = rows(QUERIES, 6), rows(DOCUMENTS, 7)
    options: dict[str, Any] = {} if kind == "triplet" else {"temperature": 0.1}
    late = by_maxsim(LOSSES[kind], QUERIES, DOCUMENTS)
    found = late(query_TM, document_TM, torch.arange(3), **options)
    expected = _by_hand(kind, maxsim(query_TM, document_TM, QUERIES, DOCUMENTS))
    torch.testing.assert_close(found, expected)
    one, other = (torch.autograd.grad(loss, query_TM, retain_graph=True)[0] for loss in (found, expected))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_scores_prefixes_and_teachers_take_them_too() -> None:
    query_TM, document_TM, positive_Q = rows(QUERIES, 6), rows(DOCUMENTS, 7), torch.arange(3)
    score_QN = maxsim(query_TM, document_TM, QUERIES, DOCUMENTS, "sum")
    # CoSENT looks at the pairs alone
    grade_Q = torch.tensor([0.1, 0.9, 0.4])
    found = by_maxsim(by_scores(grade_Q), QUERIES, DOCUMENTS, "sum")(query_TM, document_TM, positive_Q)
    pairs = [(i, j) for i in range(3) for j in range(3) if grade_Q[i] > grade_Q[j]]
    terms = torch.stack([((score_QN[j, j] - score_QN[i, i]) / 0.05).exp() for i, j in pairs])
    torch.testing.assert_close(found, (1 + terms.sum()).log())
    # prefixes are those of every token
    nested = matryoshka(by_maxsim(LOSSES["info_nce"], QUERIES, DOCUMENTS), [8, 4])
    short = [F.normalize(part[:, :4], dim=-1) for part in (query_TM, document_TM)]
    right = [maxsim(*part, QUERIES, DOCUMENTS) for part in ((query_TM, document_TM), short)]
    expected = sum(F.cross_entropy(part / 0.02, positive_Q) for part in right)
    torch.testing.assert_close(nested(query_TM, document_TM, positive_Q), expected)
    # a teacher's ranking
    target_QN = torch.rand(3, 5, generator=torch.Generator().manual_seed(8)).softmax(1)
    kl = by_maxsim(score_kl, QUERIES, DOCUMENTS, "sum")
    among_QN = torch.ones(3, 5, dtype=torch.bool)
    options: dict[str, Any] = {"target_QN": target_QN, "among_QN": among_QN, "temperature": 0.5}
    found = kl(query_TM, document_TM, positive_Q, None, None, **options)
    right_kl = F.kl_div((score_QN / 0.5).log_softmax(1), target_QN, reduction="batchmean")
    torch.testing.assert_close(found, right_kl)
