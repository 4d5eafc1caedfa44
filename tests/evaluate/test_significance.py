from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moembed.evaluate import significance
from moembed.evaluate.compare import compare
from moembed.evaluate.significance import (
    bootstrap,
    holm,
    paired_difference,
    stratified_bootstrap,
    stratified_difference,
)
from moembed.types import UserError


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    score_SQ = rng.exponential(size=(60, 80))  # true mean 1, skewed
    covered = 0
    for seed in range(5):
        interval = bootstrap(score_SQ, draws=400, seed=seed, level=0.9)
        covered += ((interval.low_S <= 1) & (interval.high_S >= 1)).mean() / 5
    assert 0.8 < covered < 0.97


def test_means_lie_inside_and_wider_levels_give_wider_intervals() -> None:
    score_SQ = np.random.default_rng(0).random((3, 50))
    narrow, wide = (bootstrap(score_SQ, level=level) for level in (0.5, 0.99))
    np.testing.assert_allclose(narrow.mean_S, score_SQ.mean(axis=1))
    assert (wide.low_S < narrow.low_S).all()
    assert (narrow.low_S < narrow.mean_S).all()
    assert (narrow.mean_S < narrow.high_S).all()
    assert (narrow.high_S < wide.high_S).all()


def test_all_systems_see_the_same_resampled_queries() -> None:
    score_Q = np.random.default_rng(0).random(40)
    together = bootstrap(np.stack([score_Q, score_Q + 1, score_Q[::-1]]), draws=300)
    alone = bootstrap(score_Q[None], draws=300)
    assert together.low_S[0] == alone.low_S[0]
    np.testing.assert_allclose(together.low_S[1], together.low_S[0] + 1)
    np.testing.assert_allclose(together.high_S[1], together.high_S[0] + 1)


def test_blocks_bound_the_memory_without_changing_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a_Q, b_Q = rng.random(30), rng.random(30)
    whole = paired_difference(a_Q, b_Q, draws=101)
    monkeypatch.setattr(significance, "_BLOCK_CELLS", 100)
    blocked = paired_difference(a_Q, b_Q, draws=101)
    assert (whole.mean, whole.low, whole.high) == (blocked.mean, blocked.low, blocked.high)
    assert blocked.p_value == pytest.approx(whole.p_value, abs=0.1)


def test_p_values_are_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(2)
    p_values = np.array(
        [paired_difference(*rng.normal(size=(2, 30)), draws=199, seed=seed).p_value for seed in range(400)]
    )
    assert abs(p_values.mean() - 0.5) < 0.06
    for level in (0.05, 0.2, 0.5):
        assert abs((p_values <= level).mean() - level) < 4 * np.sqrt(level * (1 - level) / len(p_values))


def test_a_true_difference_is_found() -> None:
    rng = np.random.default_rng(3)
    base_Q = rng.random(300)
    difference = paired_difference(base_Q + 0.05 + 0.1 * rng.normal(size=300), base_Q)
    assert difference.low > 0
    assert difference.low < difference.mean < difference.high
    assert difference.p_value == 1 / 2001
    assert difference.mean == pytest.approx(0.05, abs=0.02)


def test_swapping_the_systems_mirrors_the_difference() -> None:
    rng = np.random.default_rng(4)
    a_Q, b_Q = rng.random(60), rng.random(60)
    forth, back = paired_difference(a_Q, b_Q), paired_difference(b_Q, a_Q)
    assert back.mean == -forth.mean
    np.testing.assert_allclose([back.low, back.high], [-forth.high, -forth.low], atol=1e-12)
    assert back.p_value == forth.p_value


def test_identical_systems_do_not_differ() -> None:
    score_Q = np.random.default_rng(0).random(20)
    difference = paired_difference(score_Q, score_Q.copy())
    assert (difference.mean, difference.low, difference.high, difference.p_value) == (0, 0, 0, 1)


def test_one_query_proves_nothing() -> None:
    assert paired_difference(np.array([1.0]), np.array([0.0])).p_value == 1


def test_p_value_against_all_sign_patterns() -> None:
    # Of the 8 sign patterns of 0.1, 0.1, 0.2 only two sum to 0.4 in magnitude.
    difference = paired_difference(np.array([0.1, 0.1, 0.2]), np.zeros(3), draws=20_000)
    assert difference.p_value == pytest.approx(2 / 8, abs=0.02)


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    np.testing.assert_allclose(holm([0.2]), [0.2])
    assert holm([]).shape == (0,)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_lowers_a_p_value_nor_swaps_two(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert (adjusted >= p_values).all()
    assert (adjusted <= np.minimum(1, len(p_values) * np.array(p_values))).all()
    order = np.argsort(p_values)
    assert (np.diff(adjusted[order]) >= 0).all()


@pytest.mark.parametrize("p_values", [[0.5, 1.5], [-0.1], [np.nan], [[0.5]]])
def test_holm_refuses_what_is_not_a_p_value(p_values: list[float]) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        holm(p_values)


@pytest.mark.parametrize(
    ("score_SQ", "options", "message"),
    [
        (np.zeros((2, 0)), {}, "at least one query"),
        (np.zeros(3), {}, "2-dimensional"),
        (np.array([[0.1, np.nan]]), {}, "NaN"),
        (np.zeros((1, 3)), {"draws": 0}, "draws"),
        (np.zeros((1, 3)), {"level": 1.0}, "level"),
        (np.zeros((1, 3)), {"level": 95}, "level"),
    ],
)
def test_bootstrap_refuses_bad_input(score_SQ: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bootstrap(score_SQ, **options)


def test_paired_systems_need_the_same_queries() -> None:
    with pytest.raises(UserError, match="3 and 4"):
        paired_difference(np.zeros(3), np.zeros(4))


def test_tasks_count_alike_and_are_resampled_by_themselves() -> None:
    rng = np.random.default_rng(3)
    small_SQ, large_SQ = rng.random((2, 10)), 5 + rng.random((2, 1000))
    both = stratified_bootstrap([small_SQ, large_SQ])
    np.testing.assert_allclose(both.mean_S, (small_SQ.mean(axis=1) + large_SQ.mean(axis=1)) / 2)
    # had queries been drawn across tasks, their distance of 5 would be in the interval
    alone = bootstrap(small_SQ)
    assert both.high_S - both.low_S == pytest.approx((alone.high_S - alone.low_S) / 2, rel=0.2)


def test_a_stratified_difference_is_of_means_and_finds_what_is_there() -> None:
    rng = np.random.default_rng(4)
    base_TQ = [rng.random(20), rng.random(300)]
    better_TQ = [base_TQ[0] + 0.2 + 0.1 * rng.normal(size=20), base_TQ[1] + 0.1 * rng.normal(size=300)]
    gap = stratified_difference(better_TQ, base_TQ)
    assert gap.mean == pytest.approx(
        np.mean([(b - a).mean() for a, b in zip(base_TQ, better_TQ, strict=True)])
    )
    assert 0 < gap.low < gap.mean < gap.high
    assert gap.p_value < 0.01
    assert stratified_difference(base_TQ, base_TQ).p_value == 1


def test_comparing_over_tasks_is_comparing_their_means() -> None:
    rng = np.random.default_rng(5)
    tasks = [{system: {"ndcg@10": rng.random(size)} for system in "ab"} for size in (8, 80)]
    over = compare(*tasks)
    means = [np.mean([task[system]["ndcg@10"].mean() for task in tasks]) for system in "ab"]
    assert [over.metrics[system]["ndcg@10"]["value"] for system in "ab"] == pytest.approx(means)
    assert over.differences["a-b"]["ndcg@10"]["mean"] == pytest.approx(means[0] - means[1])
    assert compare(tasks[0]) == compare(tasks[0], reference="b")
