"""Is one system better than another, or was it luck with these queries?

Per-query scores in, intervals and p-values out. Queries are the sampling unit, and every system is seen on
the same resampled queries, so differences are paired. Shapes: T tasks, S systems, Q queries, D draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moembed.types import UserError

_BLOCK_CELLS = 1 << 22  # random numbers held at a time
_ROUNDING = 1e-9  # relative; sums of the same numbers in another order still count as equal


@dataclass(frozen=True, slots=True)
class Intervals:
    """Mean score of every system and the ends of its bootstrap interval."""

    mean_S: np.ndarray
    low_S: np.ndarray
    high_S: np.ndarray


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of ``a - b`` over queries, its bootstrap interval and a two-sided p-value."""

    mean: float
    low: float
    high: float
    p_value: float


def bootstrap(score_SQ: np.ndarray, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Intervals:
    """Percentile bootstrap over queries: ``draws`` times, draw Q queries with replacement and average.

    All systems (rows) share the resampled queries; adding a system leaves the intervals of the others alone.

    Source: Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 13; for retrieval metrics
    Sakai, *Evaluating evaluation metrics based on the bootstrap* (2006).

    Raises:
        UserError: no query, a score that is not finite, ``draws`` below 1 or ``level`` outside (0, 1).
    """
    return stratified_bootstrap([score_SQ], draws, seed, level)


def stratified_bootstrap(
    score_TSQ: Sequence[np.ndarray], draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Intervals:
    """``bootstrap`` of the mean over tasks: every task counts alike, however many queries it has.

    Each draw resamples the queries of every task by themselves, so the tasks are taken as given.

    Args:
        score_TSQ: one ``(S, Q)`` array per task, with the same systems.
    """
    if not 0 < level < 1:
        raise UserError(f"level must lie between 0 and 1, not {level}")
    score_TSQ = [_finite(score_SQ, ndim=2) for score_SQ in score_TSQ]
    rng = np.random.default_rng(seed)
    mean_SD = np.mean([_resampled(score_SQ, draws, rng) for score_SQ in score_TSQ], axis=0)
    low_S, high_S = np.quantile(mean_SD, [(1 - level) / 2, (1 + level) / 2], axis=1)
    mean_S = np.mean([score_SQ.mean(axis=1) for score_SQ in score_TSQ], axis=0)
    return Intervals(mean_S, low_S, high_S)


def paired_difference(
    a_Q: np.ndarray, b_Q: np.ndarray, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Difference:
    """Compare two systems on the same queries: positive means that ``a`` is better.

    The p-value is of Fisher's randomisation test: were the systems alike, the sign of each query's difference
    would be a coin toss; p = (1 + tosses with a mean difference at least this large) / (1 + ``draws``).

    Source: Smucker, Allan and Carterette, *A comparison of statistical significance tests for information
    retrieval evaluation* (2007).

    Raises:
        UserError: different numbers of queries, and whatever ``bootstrap`` refuses.
    """
    return stratified_difference([a_Q], [b_Q], draws, seed, level)


def stratified_difference(
    a_TQ: Sequence[np.ndarray],
    b_TQ: Sequence[np.ndarray],
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """``paired_difference`` of the means over tasks, which count alike; one array per task and system."""
    difference_TQ = [_paired(a_Q, b_Q) for a_Q, b_Q in zip(a_TQ, b_TQ, strict=True)]
    interval = stratified_bootstrap(
        [difference_Q[None] for difference_Q in difference_TQ], draws, seed, level
    )
    # divided by the task's queries, the sum over all of them is the sum of the tasks' means
    part_Q = np.concatenate([difference_Q / len(difference_Q) for difference_Q in difference_TQ])
    return Difference(
        mean=float(interval.mean_S[0]),
        low=float(interval.low_S[0]),
        high=float(interval.high_S[0]),
        p_value=_sign_flip(part_Q, draws, seed),
    )


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


def _resampled(score_SQ: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """``mean_SD``: what each system scores on every draw."""
    systems, queries = score_SQ.shape
    mean_SD = np.empty((systems, draws))
    for block in _blocks(draws, queries):
        index_DQ = rng.integers(queries, size=(block.stop - block.start, queries))
        for system, score_Q in enumerate(score_SQ):
            mean_SD[system, block] = score_Q[index_DQ].mean(axis=1)
    return mean_SD


def _paired(a_Q: np.ndarray, b_Q: np.ndarray) -> np.ndarray:
    a_Q, b_Q = _finite(a_Q, ndim=1), _finite(b_Q, ndim=1)
    if len(a_Q) != len(b_Q):
        raise UserError(
            f"paired systems need the same queries, but there are {len(a_Q)} and {len(b_Q)} scores"
        )
    return a_Q - b_Q


def _sign_flip(difference_Q: np.ndarray, draws: int, seed: int) -> float:
    observed = abs(difference_Q.sum()) * (1 - _ROUNDING)
    moved = difference_Q[difference_Q != 0]  # a query without a difference weighs nothing, whatever its sign
    rng = np.random.default_rng(seed)
    as_large = 0
    for block in _blocks(draws, max(1, len(moved))):
        sign_DQ = 2.0 * rng.integers(2, size=(block.stop - block.start, len(moved)), dtype=np.int8) - 1
        as_large += int((np.abs(sign_DQ @ moved) >= observed).sum())
    return (1 + as_large) / (1 + draws)


def _blocks(draws: int, queries: int) -> Iterator[slice]:
    if draws < 1:
        raise UserError(f"draws must be at least 1, not {draws}")
    step = max(1, _BLOCK_CELLS // queries)
    for start in range(0, draws, step):
        yield slice(start, min(start + step, draws))


def _finite(score: np.ndarray, ndim: int) -> np.ndarray:
    score = np.asarray(score, dtype=np.float64)
    if score.ndim != ndim or score.size == 0:
        raise UserError(f"need {ndim}-dimensional scores of at least one query, not shape {score.shape}")
    if not np.isfinite(score).all():
        raise UserError("scores hold NaN or infinity: leave out the queries without relevant documents")
    return score
