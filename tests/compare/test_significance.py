from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moembed.compare import significance
from moembed.compare.significance import (
    Estimate,
    Runs,
    average,
    difference,
    holm,
    interval,
    paired_difference,
    resample,
    swap,
)
from moembed.compare.statistics import MEAN, STATISTICS
from moembed.types import UserError

Rng = np.random.Generator


def runs_of(score_RQ: np.ndarray, draws: int = 400, seed: int = 0) -> Runs:
    score_RQ = np.atleast_2d(score_RQ)
    draw_RD = resample(MEAN, list(score_RQ), draws, np.random.default_rng(seed))
    return Runs(score_RQ.mean(axis=1), draw_RD)


def interval_of(score_Q: np.ndarray, level: float = 0.95, **options: int) -> Estimate:
    return interval(runs_of(score_Q, **options), level)


def p_values(experiment: Callable[[Rng, int], float], times: int = 300) -> np.ndarray:
    rng = np.random.default_rng(11)
    return np.array([experiment(rng, seed) for seed in range(times)])


def distance_to_uniform(p: np.ndarray) -> float:
    """Kolmogorov's and Smirnov's, in units of what a hundredth of uniform samples exceed."""
    grid = np.arange(len(p) + 1) / len(p)
    ordered = np.sort(p)
    return float(max((ordered - grid[:-1]).max(), (grid[1:] - ordered).max()) * np.sqrt(len(p)) / 1.63)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    score_EQ = np.random.default_rng(1).exponential(size=(300, 80))  # true mean 1, skewed
    found = [interval_of(score_Q, level=0.9) for score_Q in score_EQ]
    assert 0.84 < np.mean([i.low <= 1 <= i.high for i in found]) < 0.94


def test_values_lie_inside_and_wider_levels_give_wider_intervals() -> None:
    score_Q = np.random.default_rng(0).random(50)
    narrow, wide = (interval_of(score_Q, level=level) for level in (0.5, 0.99))
    assert narrow.value == score_Q.mean()
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_all_systems_see_the_same_resampled_items() -> None:
    score_Q = np.random.default_rng(0).random(40)
    together = resample(MEAN, [score_Q, score_Q + 1, score_Q[::-1]], 300, np.random.default_rng(0))
    alone = resample(MEAN, [score_Q], 300, np.random.default_rng(0))
    np.testing.assert_allclose(together[0], alone[0])
    np.testing.assert_allclose(together[1], together[0] + 1)


def test_blocks_bound_the_memory_without_changing_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    a_Q, b_Q = np.random.default_rng(0).random((2, 30))
    whole = paired_difference(a_Q, b_Q, draws=101)
    monkeypatch.setattr(significance, "_BLOCK_CELLS", 100)
    blocked = paired_difference(a_Q, b_Q, draws=101)
    assert (blocked.mean, blocked.low, blocked.high) == pytest.approx((whole.mean, whole.low, whole.high))
    assert blocked.p_value == pytest.approx(whole.p_value, abs=0.1)


def test_p_values_of_means_are_uniform_when_nothing_differs() -> None:
    p = p_values(lambda rng, seed: paired_difference(*rng.normal(size=(2, 30)), draws=199, seed=seed).p_value)
    assert distance_to_uniform(p) < 1


@pytest.mark.parametrize("name", ["spearman", "pearson"])
def test_p_values_of_correlations_are_uniform_when_nothing_differs(name: str) -> None:
    def experiment(rng: Rng, seed: int) -> float:
        right_Q = rng.normal(size=40).round(1)  # with ties
        a, b = (np.stack([right_Q + rng.normal(size=40), right_Q], axis=1) for _ in "ab")
        return paired_difference(a, b, STATISTICS[name], draws=199, seed=seed).p_value

    assert distance_to_uniform(p_values(experiment)) < 1


def test_the_interval_of_a_correlation_covers_the_truth() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for seed in range(200):
        right_Q = rng.normal(size=150)
        # of two normal variables with Pearson's correlation r, Spearman's is 6 / pi asin(r / 2)
        a, b = (np.stack([right_Q + s * rng.normal(size=150), right_Q], axis=1) for s in (1, 2))
        truth = np.subtract(*(6 / np.pi * np.arcsin(1 / np.sqrt(1 + s * s) / 2) for s in (1, 2)))
        found = paired_difference(a, b, STATISTICS["spearman"], draws=300, seed=seed)
        covered += found.low <= truth <= found.high
    assert 0.89 < covered / 200 < 0.99


def test_a_better_clustering_is_found_and_an_equal_one_is_not() -> None:
    rng = np.random.default_rng(5)
    right_Q = rng.integers(4, size=300)

    def clusters(share: float) -> np.ndarray:
        return (
            np.stack([np.where(rng.random(300) < share, right_Q, rng.integers(4, size=300)), right_Q], 1)
            + 0.0
        )

    v_measure = STATISTICS["v_measure"]
    assert paired_difference(clusters(0.9), clusters(0.6), v_measure, draws=300).p_value < 0.01
    alike = [
        paired_difference(clusters(0.7), clusters(0.7), v_measure, draws=200).p_value for _ in range(100)
    ]
    assert np.mean(np.array(alike) < 0.05) <= 0.12
    assert swap(v_measure, [clusters(0.5)], clusters(0.5), 10, rng) is None


def test_the_bias_of_the_v_measure_does_not_move_its_interval() -> None:
    """A resample holds fewer different texts, in which clusters and classes agree more by chance."""
    rng = np.random.default_rng(6)
    value = rng.integers(8, size=(120, 2)) + 0.0
    v_measure = STATISTICS["v_measure"]
    drawn = resample(v_measure, [value], 500, rng)
    assert np.quantile(drawn, 0.025) > v_measure(value), "resamples alone would miss the score"
    found = interval(Runs(np.array([v_measure(value)]), drawn))
    assert found.low < found.value < found.high


def test_a_true_difference_is_found() -> None:
    rng = np.random.default_rng(3)
    base_Q = rng.random(300)
    gap = paired_difference(base_Q + 0.05 + 0.1 * rng.normal(size=300), base_Q)
    assert 0 < gap.low < gap.mean < gap.high
    assert gap.p_value == 1e-6
    assert gap.mean == pytest.approx(0.05, abs=0.02)


def test_swapping_the_systems_mirrors_the_difference() -> None:
    a_Q, b_Q = np.random.default_rng(4).random((2, 60))
    forth, back = paired_difference(a_Q, b_Q), paired_difference(b_Q, a_Q)
    mirrored = (-back.mean, -back.high, -back.low, back.p_value, -back.effect)
    assert (forth.mean, forth.low, forth.high, forth.p_value, forth.effect) == pytest.approx(mirrored)


def test_identical_systems_do_not_differ() -> None:
    score_Q = np.random.default_rng(0).random(20)
    gap = paired_difference(score_Q, score_Q.copy())
    assert (gap.mean, gap.low, gap.high, gap.p_value, gap.effect) == (0, 0, 0, 1, 0)


def test_one_item_proves_nothing() -> None:
    assert paired_difference(np.array([1.0]), np.array([0.0])).p_value == 1


def test_p_value_against_all_sign_patterns() -> None:
    # Of the 8 sign patterns of 0.1, 0.1, 0.2 only two sum to 0.4 in magnitude.
    gap = paired_difference(np.array([0.1, 0.1, 0.2]), np.zeros(3), draws=20_000)
    assert gap.p_value == pytest.approx(2 / 8, abs=0.02)


def test_the_effect_is_cohens_d_of_the_paired_differences() -> None:
    rng = np.random.default_rng(7)
    a_Q, b_Q = rng.normal(size=(2, 200))
    a_Q += 0.3
    gap_Q = a_Q - b_Q
    assert paired_difference(a_Q, b_Q).effect == pytest.approx(gap_Q.mean() / gap_Q.std(), rel=0.06)


def test_small_p_values_are_those_of_all_sign_patterns() -> None:
    """Few draws are as far out as this: their share would be off by half or more."""
    rng = np.random.default_rng(9)
    sign_DQ = 2.0 * ((np.arange(1 << 16)[:, None] >> np.arange(16)) % 2) - 1
    ratios = []
    for _ in range(20):
        gap_Q = rng.normal(size=16) + 1.1
        exact = np.mean(np.abs(sign_DQ @ gap_Q) >= abs(gap_Q.sum()) * (1 - 1e-9))
        if exact < 0.002:
            ratios.append(paired_difference(gap_Q, np.zeros(16)).p_value / exact)
    assert len(ratios) > 5
    assert 0.7 < np.median(ratios) < 4
    assert min(ratios) > 0.4, "it may be too careful, but hardly too bold"


def test_a_hundred_comparisons_can_still_find_something() -> None:
    rng = np.random.default_rng(10)
    base_Q = rng.random(300)
    single = paired_difference(base_Q + 0.05 + 0.1 * rng.normal(size=300), base_Q).p_value
    runs = [runs_of(trained(rng, 0.02) + gain, draws=2000) for gain in (2.0, 0.0)]
    seeds = difference(*runs, 60).p_value
    draws = 20 * 2000  # how far out Student's t goes is counted, never guessed
    assert seeds * (1 + draws) == pytest.approx(round(seeds * (1 + draws)))
    assert (holm([single, seeds, *[0.5] * 200])[:2] < 0.05).all()


SEEDS = 3


def trained(rng: Rng, seed_effect: float, item_effect: float = 0.1) -> np.ndarray:
    """Scores of a system that is trained three times: the runs differ as a whole, and item by item."""
    own_Q = 0.05 * rng.normal(size=(1, 60))
    return own_Q + seed_effect * rng.normal(size=(SEEDS, 1)) + item_effect * rng.normal(size=(SEEDS, 60))


def rejected(p: np.ndarray, level: float = 0.05) -> float:
    return float(np.mean(p <= level))


def test_seeds_are_a_level_of_their_own() -> None:
    """Nothing differs but the luck of the seed: only who ignores it finds differences."""

    def seeds(rng: Rng, seed: int) -> float:
        a, b = (runs_of(trained(rng, 0.04), draws=199, seed=seed) for _ in "ab")
        return difference(a, b, 60, seed=seed).p_value

    def ignored(rng: Rng, seed: int) -> float:
        a, b = (trained(rng, 0.04).mean(axis=0) for _ in "ab")
        return paired_difference(a, b, draws=199, seed=seed).p_value

    def resampled(rng: Rng, seed: int) -> float:
        """The bootstrap of the textbooks: seeds are drawn with replacement, and items within."""
        a, b = (runs_of(trained(rng, 0.04), draws=199, seed=seed) for _ in "ab")
        pick_SRD = rng.integers(SEEDS, size=(2, SEEDS, 199))
        first_D, second_D = (
            np.take_along_axis(x.draw_RD, pick_RD, axis=0).mean(axis=0)
            for x, pick_RD in zip((a, b), pick_SRD, strict=True)
        )
        gap = a.value - b.value
        return float(np.mean(np.abs(first_D - second_D - gap) >= abs(gap)))

    honest = p_values(seeds)
    assert distance_to_uniform(honest) < 1
    assert rejected(honest) < 0.08
    assert rejected(p_values(ignored)) > 0.25
    assert rejected(p_values(resampled)) > 0.075


@pytest.mark.parametrize(("seed_effect", "item_effect"), [(0.0, 0.3), (0.02, 0.1), (0.0, 0.02)])
def test_what_runs_differ_in_item_by_item_counts_once(seed_effect: float, item_effect: float) -> None:
    def experiment(rng: Rng, seed: int) -> float:
        a, b = (runs_of(trained(rng, seed_effect, item_effect), draws=199, seed=seed) for _ in "ab")
        return difference(a, b, 60, seed=seed).p_value

    assert distance_to_uniform(p_values(experiment)) < 1


@pytest.mark.parametrize("together", [0.0, 0.04])
def test_pairs_of_runs_that_saw_the_same_batches(together: float) -> None:
    """What the batches do to both goes out: p stays uniform, and a small difference is seen through it."""

    def pair(rng: Rng, seed: int, gain: float) -> tuple[Runs, Runs]:
        batches_R1 = together * rng.normal(size=(SEEDS, 1))
        a, b = (trained(rng, 0.005, 0.01) + batches_R1 for _ in "ab")
        return runs_of(a + gain, draws=199, seed=seed), runs_of(b, draws=199, seed=seed)

    def p_value(gain: float, paired: bool) -> Callable[[Rng, int], float]:
        return lambda rng, seed: difference(*pair(rng, seed, gain), 60, paired=paired, seed=seed).p_value

    assert distance_to_uniform(p_values(p_value(0.0, True))) < 1
    seen, seen_apart = (rejected(p_values(p_value(0.03, paired))) for paired in (True, False))
    assert seen > 0.5
    assert (seen > 2 * seen_apart) == (together > 0)


def test_paired_runs_by_hand() -> None:
    """Three differences of 1, 2 and 3 hundredths on items that do not vary: 0.02 ± 4.303 · 0.01 / √3."""
    a, b = np.full((3, 20), 0.5), np.full((3, 20), 0.5)
    a += np.array([[0.01], [0.02], [0.03]]) + 0.1 * np.arange(3)[:, None]
    b += 0.1 * np.arange(3)[:, None]
    gap = difference(runs_of(a, draws=4000), runs_of(b, draws=4000), 20, paired=True)
    assert gap.mean == pytest.approx(0.02)
    # 80,000 draws of Student's t: their 2.5 % quantile is known to about 2 %
    assert gap.high - gap.mean == pytest.approx(4.303 * 0.01 / 3**0.5, rel=0.06)


def test_several_runs_against_a_model_that_is_what_it_is() -> None:
    def experiment(rng: Rng, seed: int) -> float:
        fixed = runs_of(0.05 * rng.normal(size=60), draws=199, seed=seed)
        return difference(runs_of(trained(rng, 0.04), draws=199, seed=seed), fixed, 60, seed=seed).p_value

    assert distance_to_uniform(p_values(experiment)) < 1


def test_the_interval_of_three_runs_covers_what_training_gives() -> None:
    rng = np.random.default_rng(8)
    found = [interval(runs_of(trained(rng, 0.04), draws=199, seed=seed), seed=seed) for seed in range(300)]
    assert 0.92 < np.mean([i.low <= 0 <= i.high for i in found]) < 0.98


def test_runs_of_equal_scores_change_nothing() -> None:
    score_Q = np.random.default_rng(0).random(50)
    thrice, once = interval(runs_of(np.stack([score_Q] * 3))), interval_of(score_Q)
    assert (thrice.value, thrice.low, thrice.high) == pytest.approx((once.value, once.low, once.high))


def test_tasks_count_alike_and_are_resampled_by_themselves() -> None:
    rng = np.random.default_rng(3)
    small, large = runs_of(rng.random(10)), runs_of(5 + rng.random(1000), seed=1)
    both, alone = interval(average([small, large])), interval(small)
    assert both.value == pytest.approx((small.value + large.value) / 2)
    # had items been drawn across tasks, their distance of 5 would be in the interval
    assert both.high - both.low == pytest.approx((alone.high - alone.low) / 2, rel=0.2)


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    np.testing.assert_allclose(holm([0.2]), [0.2])
    assert holm([]).shape == (0,)


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
    ("score_Q", "options", "message"),
    [
        (np.zeros(0), {}, "at least one item"),
        (np.array([0.1, np.nan]), {}, "NaN"),
        (np.zeros(3), {"draws": 0}, "draws"),
        (np.zeros(3), {"level": 1.0}, "level"),
        (np.zeros(3), {"level": 95}, "level"),
    ],
)
def test_bad_input_is_refused(score_Q: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        paired_difference(score_Q, score_Q, **options)


def test_paired_systems_need_the_same_items() -> None:
    with pytest.raises(UserError, match="3 and 4"):
        paired_difference(np.zeros(3), np.zeros(4))


def test_intervals_end_where_the_statistic_does() -> None:
    """Deviations are laid around the score, so they alone would give an average precision of 1.06."""
    rng = np.random.default_rng(0)
    ap = STATISTICS["ap"]
    best = np.array([[4, 1], [3, 0], [2, 0], [1, 0.0]])
    drawn = resample(ap, [best], 500, rng)
    found = interval(Runs(np.array([1.0]), drawn, ap.bounds))
    assert interval(Runs(np.array([1.0]), drawn)).high > 1
    assert found.low < found.value == found.high == 1
    worst = best * [-1, 1]
    gap = paired_difference(best, worst, ap, draws=500)
    assert -1 <= gap.low <= gap.mean <= gap.high <= 1
