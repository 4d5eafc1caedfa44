"""Gaps between groups of vectors, closed by numbers; two encoders in one. Equalities, drawn at random."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import TruncatedSVD

from moembed.search.alignment import directions, group_means, projection, shift
from moembed.search.fusion import reduction, side_by_side
from moembed.types import UserError


def unit(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    vector_NM = rng.normal(size=(count, width)) + 1
    return (vector_NM / np.linalg.norm(vector_NM, axis=1, keepdims=True)).astype(np.float32)


def grouped(seed: int, count: int = 40, width: int = 7, groups: int = 3) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    names = [f"g{number % groups}" for number in range(count)]
    apart_LM = rng.normal(size=(groups, width))
    vector_NM = unit(rng, count, width) + apart_LM[[int(name[1]) for name in names]]
    return (vector_NM / np.linalg.norm(vector_NM, axis=1, keepdims=True)).astype(np.float32), names


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_means_come_together_by_the_strength(seed: int, strength: float) -> None:
    vector_NM, names = grouped(seed)
    means = group_means(vector_NM, names)
    expected_LM = means.center_M + (1 - strength) * (means.mean_LM - means.center_M)
    for moved_NM in (shift(vector_NM, names, means, strength), projection(means, strength)(vector_NM)):
        np.testing.assert_allclose(group_means(moved_NM, names).mean_LM, expected_LM, atol=1e-5)


def test_two_groups_take_half_a_step_each() -> None:
    vector_NM, names = grouped(3, groups=2)
    means = group_means(vector_NM, names)
    gap_M = vector_NM[::2].mean(axis=0) - vector_NM[1::2].mean(axis=0)
    moved_NM = shift(vector_NM, names, means, 0.7)
    np.testing.assert_allclose(moved_NM[::2], vector_NM[::2] - 0.7 * gap_M / 2, atol=1e-6)
    np.testing.assert_allclose(moved_NM[1::2], vector_NM[1::2] + 0.7 * gap_M / 2, atol=1e-6)
    assert means.gap == pytest.approx(np.linalg.norm(gap_M), abs=1e-6)


def test_strength_0_changes_no_bit_and_unknown_groups_stay() -> None:
    vector_NM, names = grouped(5)
    means = group_means(vector_NM, names)
    np.testing.assert_array_equal(shift(vector_NM, names, means, 0.0), vector_NM)
    np.testing.assert_array_equal(projection(means, 0.0)(vector_NM), vector_NM)
    np.testing.assert_array_equal(shift(vector_NM, ["x", None] * 20, means, 1.0), vector_NM)


def test_a_projection_leaves_what_is_at_right_angles_to_the_means() -> None:
    vector_NM, names = grouped(7)
    means = group_means(vector_NM, names)
    row_RM = directions(means)
    assert row_RM.shape == (2, 7)  # three means differ in two directions
    np.testing.assert_allclose(row_RM @ row_RM.T, np.eye(2), atol=1e-12)
    layer = projection(means, 1.0)
    moved_NM = layer(vector_NM)
    np.testing.assert_allclose(moved_NM @ row_RM.T, np.tile(row_RM @ means.center_M, (40, 1)), atol=1e-6)
    rest_NM = vector_NM - moved_NM
    np.testing.assert_allclose(rest_NM @ row_RM.T @ row_RM, rest_NM, atol=1e-6)
    np.testing.assert_allclose(layer(moved_NM), moved_NM, atol=1e-6)  # once is enough


@given(st.integers(0, 10**6), st.lists(st.floats(0.01, 9), min_size=2, max_size=3))
def test_a_cosine_side_by_side_is_the_weighted_mean_of_cosines(seed: int, weights: list[float]) -> None:
    rng = np.random.default_rng(seed)
    vectors = [unit(rng, 6, 3 + number) for number in range(len(weights))]
    together_NM = side_by_side(vectors, weights)
    cosine_NN = sum(w * v @ v.T for w, v in zip(weights, vectors, strict=True)) / sum(weights)
    np.testing.assert_allclose(together_NM @ together_NM.T, cosine_NN, atol=1e-5)


def test_the_coordinates_kept_are_those_of_a_truncated_svd() -> None:
    vector_NM = unit(np.random.default_rng(0), 50, 8)
    layer, kept = reduction(vector_NM, 3)
    found_ND = layer(vector_NM)
    theirs_ND = TruncatedSVD(3, algorithm="arpack", random_state=0).fit_transform(vector_NM)
    np.testing.assert_allclose(np.abs(found_ND), np.abs(theirs_ND), atol=1e-4)
    assert kept == pytest.approx((theirs_ND**2).sum() / (vector_NM**2).sum(), abs=1e-5)
    whole, all_kept = reduction(vector_NM, 8)
    np.testing.assert_allclose(whole(vector_NM) @ whole(vector_NM).T, vector_NM @ vector_NM.T, atol=1e-5)
    assert all_kept == pytest.approx(1)


def test_mistakes_are_told() -> None:
    vector_NM, names = grouped(1)
    means = group_means(vector_NM, names)
    for call, complaint in [
        (lambda: group_means(vector_NM, names[1:]), "do not fit together"),
        (lambda: group_means(vector_NM, ["a"] * 40), "all vectors are of the group a"),
        (lambda: shift(vector_NM, names, means, 1.5), "is not a share"),
        (lambda: projection(group_means(np.ones((4, 3)), ["a", "b"] * 2), 1.0), "one and the same mean"),
        (lambda: side_by_side([vector_NM], [1, 1]), "2 weights were given for 1"),
        (lambda: side_by_side([vector_NM, vector_NM[1:]], [1, 1]), "different numbers"),
        (lambda: side_by_side([vector_NM, vector_NM], [0, 0]), "not all 0"),
        (lambda: reduction(vector_NM, 8), "not within 1..7"),
        (lambda: reduction(vector_NM[:4], 5), "at least as many texts as dim"),
    ]:
        with pytest.raises(UserError, match=complaint):
            call()


def test_the_gap_is_the_mean_distance_whatever_the_number_of_groups() -> None:
    vector_NM, names = grouped(1, count=60, groups=5)
    means = group_means(vector_NM, names)
    apart = [np.linalg.norm(a - b) for i, a in enumerate(means.mean_LM) for b in means.mean_LM[:i]]
    assert means.gap == pytest.approx(np.mean(apart))
    many = group_means(unit(np.random.default_rng(0), 1000, 32), [str(i) for i in range(1000)])
    tracemalloc.start()
    assert many.gap > 0
    assert tracemalloc.get_traced_memory()[1] < 4e6  # all differences at once take 256 MB
    tracemalloc.stop()
