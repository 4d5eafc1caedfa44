from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import v_measure_score

from moembed.compare.statistics import MEAN, STATISTICS, split, statistic

tied = st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), min_size=3, max_size=40)


def test_metrics_have_their_statistic() -> None:
    assert statistic("a number") is MEAN
    assert statistic("ndcg@10").resampled is MEAN.resampled
    assert statistic("spearman") is STATISTICS["spearman"]
    assert MEAN(np.array([0.0, 0.5, 1.0])) == 0.5


@given(tied)
def test_correlations_equal_those_of_scipy(pairs: list[tuple[int, int]]) -> None:
    value = np.array(pairs, dtype=float) * 1e-3 + 7
    for name, reference in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        if (np.ptp(value, axis=0) > 0).all():
            assert statistic(name)(value) == pytest.approx(reference(*value.T).statistic, abs=1e-9)
        else:
            assert statistic(name)(value) == 0, "a constant correlates with nothing"


@given(tied)
def test_the_v_measure_equals_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    cluster, label = np.array(pairs).T
    value = np.stack([cluster, label], axis=1).astype(float)
    assert statistic("v_measure")(value) == pytest.approx(v_measure_score(label, cluster), abs=1e-9)


@pytest.mark.parametrize("name", ["mean", *STATISTICS])
def test_a_resample_counts_as_the_items_it_holds(name: str) -> None:
    rng = np.random.default_rng(0)
    sums_up = statistic(name)
    value_X = [rng.integers(4, size=(25, 2)) + 0.0 for _ in range(3)]
    for value in value_X:
        value[:, 1] = value_X[0][:, 1]
    value_X = [value[:, 0] for value in value_X] if name == "mean" else value_X
    index_DQ = rng.integers(25, size=(7, 25))
    weight_QD = np.stack([np.bincount(index_Q, minlength=25) for index_Q in index_DQ], axis=1)
    stat_XD = sums_up.resampled(*split(value_X), weight_QD.astype(float))
    expected_XD = [[sums_up(value[index_Q]) for index_Q in index_DQ] for value in value_X]
    np.testing.assert_allclose(stat_XD, expected_XD, atol=1e-12)


@pytest.mark.parametrize("name", ["mean", "pearson", "spearman"])
def test_swapping_nothing_or_everything(name: str) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 30, 2))
    b[:, 1] = a[:, 1]
    a, b = (a[:, 0], b[:, 0]) if name == "mean" else (a, b)
    sums_up = statistic(name)
    predicted_XQ, right_Q = split([a, b])
    sign_QD = np.stack([np.ones(30), -np.ones(30)], axis=1)
    assert sums_up.swapped is not None
    swap_XD = sums_up.swapped(predicted_XQ[:1], predicted_XQ[1], right_Q, sign_QD)
    gap = sums_up(a) - sums_up(b)
    np.testing.assert_allclose(swap_XD, [[gap, -gap]], atol=1e-12)


def test_swapped_pearson_by_hand() -> None:
    rng = np.random.default_rng(2)
    a, b, right = rng.normal(size=(3, 20))
    a, b = ((x - x.mean()) / x.std() for x in (a, b))
    swaps = rng.integers(2, size=20) == 1
    first, second = np.where(swaps, b, a), np.where(swaps, a, b)
    expected = np.corrcoef(first, right)[0, 1] - np.corrcoef(second, right)[0, 1]
    swapped = STATISTICS["pearson"].swapped
    assert swapped is not None
    found = swapped(5 * a[None] + 1, b - 3, right, np.where(swaps, -1.0, 1.0)[:, None])
    assert found[0, 0] == pytest.approx(expected)
