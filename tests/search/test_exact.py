"""Scores decided in float32 where that is safe are the float64 ones, however near they lie."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moembed.search import exact
from moembed.search.exact import pair_scores, ranks, top_k
from moembed.types import UserError


def normal(rows: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)


def all_scores(query_QM: np.ndarray, document_NM: np.ndarray) -> np.ndarray:
    """Every cosine in float64, in steps."""

    def unit(vector_NM: np.ndarray) -> np.ndarray:
        vector_NM = vector_NM.astype(np.float64)
        norm_N1 = np.linalg.norm(vector_NM, axis=1, keepdims=True)
        return vector_NM / np.where(norm_N1 > 0, norm_N1, 1)

    return np.rint(unit(query_QM) @ unit(document_NM).T * exact.STEPS) / exact.STEPS


def nearly_equal(dim: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Documents that one float32 product cannot tell apart, some of them twice."""
    generator = np.random.default_rng(0)
    step_NM = generator.integers(-3, 4, (600, dim)) * np.float32(2**-22)
    document_NM = (normal(1, dim, 1) + step_NM).astype(np.float32)
    return normal(20, dim, 2), np.concatenate([document_NM, document_NM[::3]])


def test_top_k_of_near_ties_is_the_stable_full_sort():
    query_QM, document_NM = nearly_equal()
    with patch.multiple(exact, QUERY_BLOCK=7, DOCUMENT_BLOCK=50, _PAIRS=16):
        hits = top_k(query_QM, document_NM, 9)
    score_QN = all_scores(query_QM, document_NM)
    np.testing.assert_array_equal(hits.index, np.argsort(-score_QN, axis=1, kind="stable")[:, :9])


@pytest.mark.parametrize("dense", [1, 10**9])
def test_both_ways_to_compute_open_scores_agree(dense):
    query_QM, document_NM = nearly_equal()
    wanted = top_k(query_QM, document_NM, 9)
    with patch.multiple(exact, DOCUMENT_BLOCK=50, _DENSE=dense):
        hits = top_k(query_QM, document_NM, 9)
    np.testing.assert_array_equal(hits.index, wanted.index)
    np.testing.assert_array_equal(hits.score, wanted.score)


@pytest.mark.parametrize("keep", [False, True])
def test_a_crowded_block_says_itself_how_high_the_bar_is(keep, monkeypatch):
    """Few scores are computed in float64, also before ``k`` documents have passed."""
    query_QM, document_NM = normal(3, 32, 1), np.concatenate([normal(1500, 32, 2)] * 2)
    real, asked = exact._Scores.exact, []
    monkeypatch.setattr(
        exact._Scores, "exact", lambda self, row, column: asked.append(len(row)) or real(self, row, column)
    )
    keep_N = np.arange(3000) % 7 == 0 if keep else np.ones(3000, bool)
    norm_N = exact.norms_of(document_NM)
    hits = exact.search_parts(query_QM, [document_NM], 3000, 9, [norm_N], [keep_N])
    assert asked[0] <= 3 * 18
    score_QN = np.where(keep_N, all_scores(query_QM, document_NM), -np.inf)
    np.testing.assert_array_equal(hits.index, np.argsort(-score_QN, axis=1, kind="stable")[:, :9])


def test_the_scores_of_some_pairs_are_those_of_all():
    query_QM, document_NM = nearly_equal()
    query_P, document_P = np.divmod(np.arange(0, 20 * 800, 7), 800)
    found = exact.scores_of(query_QM, query_P, document_NM[document_P])
    np.testing.assert_array_equal(found, all_scores(query_QM, document_NM)[query_P, document_P])


def test_no_float32_score_is_further_off_than_the_slack():
    query_QM, document_NM = normal(50, 384, 1), normal(5000, 384, 2)
    document_NM[:50] = query_QM  # scores of 1 err most
    score_QN = all_scores(query_QM, document_NM)
    for scores in exact._blocks(exact.unit_rows(query_QM, "query"), [document_NM]):
        rows = slice(scores.first, scores.first + scores.score_QN.shape[1])
        assert np.abs(scores.score_QN - score_QN[scores.queries, rows]).max() <= scores.slack


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dim = draw(st.integers(1, 4))
    few = st.integers(-2, 2).map(float)
    query_QM = draw(arrays(np.float32, (draw(st.integers(0, 7)), dim), elements=few))
    document_NM = draw(arrays(np.float32, (draw(st.integers(1, 13)), dim), elements=few))
    chosen = st.integers(0, len(document_NM) - 1)
    return query_QM, document_NM, draw(arrays(np.int64, len(query_QM), elements=chosen))


@given(problems())
def test_the_rank_is_one_more_than_the_documents_above(problem):
    query_QM, document_NM, own_Q = problem
    score_QN = all_scores(query_QM, document_NM)
    score_Q = pair_scores(query_QM, document_NM[own_Q])
    np.testing.assert_array_equal(score_Q, np.take_along_axis(score_QN, own_Q[:, None], 1)[:, 0])
    with patch.multiple(exact, QUERY_BLOCK=3, DOCUMENT_BLOCK=4):
        rank_Q = ranks(query_QM, [document_NM], score_Q)
    np.testing.assert_array_equal(rank_Q, 1 + (score_QN > score_Q[:, None]).sum(axis=1))


@pytest.mark.parametrize("dim", [3, 384])
def test_ranks_of_random_vectors_and_of_copies(dim):
    query_QM, document_NM = normal(300, dim, 1), normal(5000, dim, 2)
    document_NM = np.concatenate([document_NM, document_NM[:7]])
    score_Q = pair_scores(query_QM, document_NM[:300])
    rank_Q = ranks(query_QM, [document_NM[:1000], document_NM[1000:]], score_Q)
    above_QN = all_scores(query_QM, document_NM) > score_Q[:, None]
    np.testing.assert_array_equal(rank_Q, 1 + above_QN.sum(axis=1))


def test_vectors_that_are_not_finite_are_refused():
    good, bad = normal(3, 4, 0), normal(3, 4, 0)
    bad[1, 1] = np.nan
    for query_QM, document_NM, what in [(bad, good, "query 1"), (good, bad, "document 1")]:
        with pytest.raises(UserError, match=what):
            ranks(query_QM, [document_NM], np.zeros(3))
        with pytest.raises(UserError, match=what):
            pair_scores(query_QM, document_NM)
