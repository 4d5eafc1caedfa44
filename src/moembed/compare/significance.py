"""Is one system better than another, or was it luck with these queries, or with this seed?

Scores of every item in, intervals and p-values out. Items (queries, pairs, texts) are the sampling unit, and
every system is seen on the same resampled items, so differences are paired. Where a system was trained with
several seeds, its runs are a sample too: of what training it might have given.

**Items.** ``draws`` times, Q of the Q items are drawn with replacement and the statistic is taken anew
(percentile bootstrap). p-values are of Fisher's randomisation test: were two systems alike, who made which
prediction of an item would be a coin toss; p = (1 + tosses with a difference at least this large) / (1 +
``draws``). The v-measure has no such test, for clusters of two systems cannot be swapped text by text: its p
is the share of resamples that lie as far from the difference as the difference from zero.

Counting ends at 1 / ``draws``, where a correction for many comparisons begins. So where fewer than ten draws
are as far out, p is that of a normal distribution of their variance, if it is less, but no less than a
millionth. A sum of coin tosses is nearly normal, and its tails are sub-Gaussian (Hoeffding 1963).

**Seeds.** Two or three runs cannot stand for all others: drawing three of three with replacement gives 2/3 of
the variance they have, and never anything outside them. So the bootstrap over the seeds is replaced by what
is known of the mean of a few numbers: deviations √(s²/R) · t, with s² the variance of the R runs' scores and
t of Student's distribution, are added to every resample of the items. For a difference the variances of both
systems are added up and t has Welch's degrees of freedom. Runs also differ item by item, and on other items
their scores would differ otherwise: that part of s² is in the resamples as well, and is taken out of these,
so as not to count twice. Then p is the share of such draws that lie as far from the difference as the
difference from zero, by counting alone.

A system with one run is taken as it is: what is said holds for that model, not for another training of it.

**Pairs of runs.** A number does not make two trainings alike, so runs are not paired by their seeds alone.
Where run i of both systems saw the same batches, as in an experiment, what a batch does to both goes out in
their difference: then s² is that of the R differences, and t has R - 1 degrees of freedom, with wider tails.
Which is narrower, paired or not, depends on how alike the runs are; the choice follows from how they were
made, not from the figures.

**Bounds.** Deviations are laid around the score, so an interval could end where no score can be: a recall of
1.03. Its ends are moved to the range of the statistic, of a difference to that of differences.

Sources: Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 13; Smucker, Allan and
Carterette, *A comparison of statistical significance tests for information retrieval evaluation* (2007);
Hoeffding, *Probability inequalities for sums of bounded random variables* (1963); Welch, *The generalization
of "Student's" problem when several different population variances are involved* (1947); Owen, *The pigeonhole
bootstrap* (2007), on resampling both sides of a table.

Shapes: X systems, R runs of a system, Q items, D draws, T draws of Student's t for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moembed.compare.estimates import Difference, Estimate
from moembed.compare.statistics import MEAN, Statistic, split
from moembed.types import UserError

_BLOCK_CELLS = 1 << 20  # random numbers held at a time
_T_DRAWS = 20  # of Student's t for every resample of the items
_FEW = 10  # draws as far out as what was seen: too few to count by
_LEAST_P = 1e-6
_ROUNDING = 1e-9  # relative; sums of the same numbers in another order still count as equal


@dataclass(frozen=True, slots=True)
class Runs:
    """What the R runs of a system score: ``value_R`` on the items, ``draw_RD`` on resamples of them."""

    value_R: np.ndarray
    draw_RD: np.ndarray
    bounds: tuple[float, float] = (-math.inf, math.inf)  # of the statistic

    @property
    def value(self) -> float:
        return float(self.value_R.mean())

    @property
    def from_value_D(self) -> np.ndarray:
        """How far resamples lie from their mean: its own distance from the score is the bootstrap's bias."""
        draw_D = self.draw_RD.mean(axis=0)
        return draw_D - draw_D.mean()

    @property
    def between(self) -> float:
        """Variance of the mean of the runs, from how much their scores differ."""
        return float(self.value_R.var(ddof=1)) / len(self.value_R)

    @property
    def by_item(self) -> float:
        """The part of ``between`` that comes from the runs' differing on single items."""
        own_RD = self.draw_RD - self.draw_RD.mean(axis=0)
        return float(own_RD.var(axis=1).sum()) / (len(own_RD) - 1) / len(own_RD)


def average(parts: Sequence[Runs]) -> Runs:
    """The same runs on several tasks, which count alike, whatever their numbers of items."""
    low, high = np.mean([part.bounds for part in parts], axis=0)
    return Runs(
        np.mean([part.value_R for part in parts], axis=0),
        np.mean([part.draw_RD for part in parts], axis=0),
        (float(low), float(high)),
    )


def interval(runs: Runs, level: float = 0.95, seed: int = 0) -> Estimate:
    """The score of a system, the mean of its runs, with its interval, which ends where the statistic does."""
    low, high = _ends(_deviation(runs.from_value_D, [runs], seed), level)
    return Estimate(runs.value, *_within(runs.value + low, runs.value + high, runs.bounds))


def difference(
    a: Runs,
    b: Runs,
    items: int,
    swap_D: np.ndarray | None = None,
    paired: bool = False,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """What ``a`` has more than ``b``; both hold the same resamples of the same items.

    Args:
        items: how many there are, of all tasks together.
        swap_D: what ``a`` has more when predictions are swapped at random (``swap``, or a mean of it over
            tasks); used where both systems have one run. Without it the p-value is the bootstrap's.
        paired: run i of ``a`` belongs to run i of ``b``; there are as many of both.
    """
    mean = a.value - b.value
    item_D = a.from_value_D - b.from_value_D
    apart = [Runs(a.value_R - b.value_R, a.draw_RD - b.draw_RD)] if paired else [a, b]
    deviation_D = _deviation(item_D, apart, seed)
    low, high = _ends(deviation_D, level)
    reach = (a.bounds[0] - b.bounds[1], a.bounds[1] - b.bounds[0])
    low, high = _within(mean + low, mean + high, reach)
    single = len(a.value_R) == len(b.value_R) == 1
    null_D = swap_D if single and swap_D is not None else deviation_D
    per_item = item_D.std() * np.sqrt(items)
    p_value = _p_value(mean, null_D, normal=single)
    return Difference(
        mean=mean,
        low=low,
        high=high,
        p_value=p_value,
        p_holm=p_value,
        effect=float(mean / per_item) if per_item > 0 else 0.0,
    )


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    statistic: Statistic = MEAN,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Compare one run each of two systems on the same items: positive means that ``a`` is better.

    Args:
        a, b: ``(Q,)`` values, or ``(Q, 2)`` pairs of what was predicted and what is right.

    Raises:
        UserError: different numbers of items, none, values that are not finite, ``draws`` below 1 or
            ``level`` outside (0, 1).
    """
    a, b = (np.asarray(value, dtype=np.float64) for value in (a, b))
    if a.shape != b.shape:
        raise UserError(f"paired systems need the same items, but there are {len(a)} and {len(b)} scores")
    drawn_XD = resample(statistic, [a, b], draws, np.random.default_rng(seed))
    first, second = (
        Runs(np.array([statistic(v)]), d[None], statistic.bounds)
        for v, d in zip((a, b), drawn_XD, strict=True)
    )
    swap_XD = swap(statistic, [a], b, draws, np.random.default_rng(seed))
    swap_D = None if swap_XD is None else swap_XD[0]
    return difference(first, second, len(a), swap_D, level=level, seed=seed)


def resample(
    statistic: Statistic, value_X: Sequence[np.ndarray], draws: int, rng: np.random.Generator
) -> np.ndarray:
    """``(X, D)``: the statistic of all systems on ``draws`` samples of the items, the same for every system.

    The samples depend on the generator and the number of items alone.
    """
    predicted_XQ, right_Q = split([_finite(value) for value in value_X])
    items = predicted_XQ.shape[1]
    drawn_XD = np.empty((len(predicted_XQ), draws))
    for block in _blocks(draws, items):
        count = block.stop - block.start
        cell_DQ = rng.integers(items, size=(count, items)) * count + np.arange(count)[:, None]
        weight_QD = np.bincount(cell_DQ.ravel(), minlength=items * count).reshape(items, count)
        drawn_XD[:, block] = statistic.resampled(predicted_XQ, right_Q, weight_QD.astype(np.float64))
    return drawn_XD


def swap(
    statistic: Statistic,
    value_X: Sequence[np.ndarray],
    other: np.ndarray,
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """``(X, D)``: what each system has more than the other when a coin decides for every item who is who.

    None where the statistic has no such test.
    """
    if statistic.swapped is None:
        return None
    predicted_XQ, right_Q = split([_finite(value) for value in (*value_X, other)])
    items = predicted_XQ.shape[1]
    swap_XD = np.empty((len(value_X), draws))
    for block in _blocks(draws, items):
        sign_DQ = 2.0 * rng.integers(2, size=(block.stop - block.start, items), dtype=np.int8) - 1
        swap_XD[:, block] = statistic.swapped(predicted_XQ[:-1], predicted_XQ[-1], right_Q, sign_DQ.T)
    return swap_XD


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values adjusted for having made ``m`` comparisons, in the order given.

    With p_(1) <= ... <= p_(m): adjusted_(i) = max over j <= i of min(1, (m - j + 1) · p_(j)).

    Source: Holm, *A simple sequentially rejective multiple test procedure* (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise UserError("p-values must be a list of numbers between 0 and 1")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]))
    return adjusted


def _deviation(item_D: np.ndarray, systems: Sequence[Runs], seed: int) -> np.ndarray:
    """How far the truth may lie from the estimate, by the choice of the items and, if known, of the seeds."""
    repeated = [runs for runs in systems if len(runs.value_R) > 1]
    between = np.array([runs.between for runs in repeated])
    if not between.any():
        return item_D
    twice = sum(runs.by_item for runs in repeated) / max(float(item_D.var()), np.finfo(float).tiny)
    freedom = np.array([len(runs.value_R) - 1 for runs in repeated])
    welch = between.sum() ** 2 / (between**2 / freedom).sum()
    t_TD = np.random.default_rng(seed).standard_t(welch, (_T_DRAWS, len(item_D)))
    return (np.sqrt(max(0.0, 1 - twice)) * item_D + np.sqrt(between.sum()) * t_TD).ravel()


def _p_value(mean: float, null_D: np.ndarray, normal: bool) -> float:
    as_far = int((np.abs(null_D) >= abs(mean) * (1 - _ROUNDING)).sum())
    counted = (1 + as_far) / (1 + len(null_D))
    deviation = float(np.sqrt((null_D**2).mean()))
    if as_far >= _FEW or not normal or deviation == 0:
        return counted
    return max(_LEAST_P, min(counted, math.erfc(abs(mean) / deviation / math.sqrt(2))))


def _within(low: float, high: float, bounds: tuple[float, float]) -> tuple[float, float]:
    return float(np.clip(low, *bounds)), float(np.clip(high, *bounds))


def _ends(deviation_D: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise UserError(f"level must lie between 0 and 1, not {level}")
    low, high = np.quantile(deviation_D, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _blocks(draws: int, items: int) -> Iterator[slice]:
    if draws < 1:
        raise UserError(f"draws must be at least 1, not {draws}")
    step = max(1, _BLOCK_CELLS // items)
    for start in range(0, draws, step):
        yield slice(start, min(start + step, draws))


def _finite(value: np.ndarray) -> np.ndarray:
    value = np.asarray(value, dtype=np.float64)
    if len(value) == 0:
        raise UserError("there are no scores: at least one item is needed")
    if not np.isfinite(value).all():
        raise UserError("scores hold NaN or infinity: leave out the items without one")
    return value
