"""What sums up the items of a task: a mean, a correlation or the v-measure.

Every statistic is also known on resamples of the items and, where that has a meaning, with the predictions
of two systems swapped item by item; `significance` makes intervals and p-values of these.
Shapes: X systems, Q items, D draws. ``weight_QD`` says how often each draw holds an item; columns sum to Q.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_CONSTANT = 1e-12  # variance, relative to that of all items: what is left of equal numbers after rounding

Resampled = Callable[[np.ndarray, "np.ndarray | None", np.ndarray], np.ndarray]
Swapped = Callable[[np.ndarray, np.ndarray, "np.ndarray | None", np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Statistic:
    """A number that sums up ``(Q,)`` values, or ``(Q, 2)`` pairs of what was predicted and what is right.

    ``resampled(predicted_XQ, right_Q, weight_QD)`` is that of every system on every draw, ``(X, D)``.
    ``swapped(predicted_XQ, other_Q, right_Q, sign_QD)`` is what every system has more than the other,
    ``(X, D)``, once the two have swapped their predictions of the items whose sign is -1; None where
    predictions of two systems have no common scale. ``bounds`` is the range that it cannot leave.
    """

    resampled: Resampled
    swapped: Swapped | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def __call__(self, value: np.ndarray) -> float:
        predicted_XQ, right_Q = split([value])
        return float(self.resampled(predicted_XQ, right_Q, np.ones((len(value), 1)))[0, 0])


def split(value_X: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """``predicted_XQ`` and ``right_Q`` of systems whose values are ``(Q,)``, or ``(Q, 2)`` with one right."""
    if value_X[0].ndim == 1:
        return np.stack(value_X), None
    return np.stack([value_Q2[:, 0] for value_Q2 in value_X]), value_X[0][:, 1]


def _mean(predicted_XQ: np.ndarray, right_Q: Any, weight_QD: np.ndarray) -> np.ndarray:
    return predicted_XQ @ weight_QD / len(weight_QD)


def _mean_swapped(
    predicted_XQ: np.ndarray, other_Q: np.ndarray, right_Q: Any, sign_QD: np.ndarray
) -> np.ndarray:
    return (predicted_XQ - other_Q) @ sign_QD / len(sign_QD)


def _pearson(predicted_XQ: np.ndarray, right_Q: Any, weight_QD: np.ndarray) -> np.ndarray:
    """cov(x, y) / √(var(x) · var(y)); 0 where x or y is constant."""
    x_XQ, y_Q = _standard(predicted_XQ), _standard(right_Q)
    mean_XD, mean_D = _mean(x_XQ, None, weight_QD), _mean(y_Q, None, weight_QD)
    cov_XD = _mean(x_XQ * y_Q, None, weight_QD) - mean_XD * mean_D
    var_XD = _mean(x_XQ**2, None, weight_QD) - mean_XD**2
    var_D = _mean(y_Q**2, None, weight_QD) - mean_D**2
    return _correlation(cov_XD, var_XD, var_D)


def _spearman(predicted_XQ: np.ndarray, right_Q: Any, weight_QD: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the ranks, which are taken anew in every draw; ties share their mean rank."""
    y_QD = _centred_ranks(right_Q, weight_QD)
    wy_QD = weight_QD * y_QD
    var_D = (wy_QD * y_QD).sum(axis=0)
    stat_XD = np.empty((len(predicted_XQ), weight_QD.shape[1]))
    for x, predicted_Q in enumerate(predicted_XQ):
        x_QD = _centred_ranks(predicted_Q, weight_QD)
        cov_D = (wy_QD * x_QD).sum(axis=0)
        stat_XD[x] = _correlation(cov_D, (weight_QD * x_QD**2).sum(axis=0), var_D)
    return stat_XD


def _v_measure(predicted_XQ: np.ndarray, right_Q: Any, weight_QD: np.ndarray) -> np.ndarray:
    """Harmonic mean of homogeneity and completeness, = 2 - 2 H(cluster, class) / (H(cluster) + H(class)).

    One cluster of one class has v-measure 1. Source: Rosenberg and Hirschberg, *V-Measure: A conditional
    entropy-based external cluster evaluation measure* (2007), equation 1 with beta = 1.
    """
    class_Q = _levels(right_Q)
    class_D = _entropy(class_Q, weight_QD)
    stat_XD = np.empty((len(predicted_XQ), weight_QD.shape[1]))
    for x, cluster_Q in enumerate(map(_levels, predicted_XQ)):
        joint_D = _entropy(_levels(cluster_Q * (class_Q.max() + 1) + class_Q), weight_QD)
        both_D = _entropy(cluster_Q, weight_QD) + class_D
        stat_XD[x] = 2 - 2 * np.divide(joint_D, both_D, out=np.full_like(joint_D, 0.5), where=both_D > 0)
    return stat_XD


def _average_precision(predicted_XQ: np.ndarray, right_Q: Any, weight_QD: np.ndarray) -> np.ndarray:
    """Σ_t (recall_t - recall_t-1) · precision_t over the thresholds t, the highest prediction first.

    ``right_Q`` is 1 for the items to be found and 0 for the others; equal predictions share a threshold. 0
    where nothing is to be found. It is ``average_precision_score`` of scikit-learn.
    """
    found_XD = np.zeros((len(predicted_XQ), weight_QD.shape[1]))
    for x, predicted_Q in enumerate(predicted_XQ):
        level_Q = _levels(-predicted_Q)
        hit_GD = _by_level(level_Q, weight_QD * right_Q[:, None])
        place_GD = np.cumsum(_by_level(level_Q, weight_QD), axis=0)
        precision_GD = np.cumsum(hit_GD, axis=0) / np.maximum(place_GD, 1)
        found_XD[x] = (hit_GD * precision_GD).sum(axis=0) / np.maximum(hit_GD.sum(axis=0), 1)
    return found_XD


def _pearson_swapped(
    predicted_XQ: np.ndarray, other_Q: np.ndarray, right_Q: Any, sign_QD: np.ndarray
) -> np.ndarray:
    """Both systems are standardised before they swap: a correlation does not know their scales either.

    With m = (a + b) / 2 and h = (a - b) / 2 the swapped predictions are m ± sign · h, so that all sums are
    a constant and a sum over the signs.
    """
    a_XQ, b_Q, y_Q = _standard(predicted_XQ), _standard(other_Q), _standard(right_Q)
    m_XQ, h_XQ = (a_XQ + b_Q) / 2, (a_XQ - b_Q) / 2
    mean_XD, mixed_XD, cov_XD = (_mean(v_XQ, None, sign_QD) for v_XQ in (h_XQ, m_XQ * h_XQ, h_XQ * y_Q))
    square_X1 = (m_XQ**2 + h_XQ**2).mean(axis=1, keepdims=True)
    common_X1 = (m_XQ * y_Q).mean(axis=1, keepdims=True)
    one = np.array(float(y_Q.any()))
    first_XD = _correlation(common_X1 + cov_XD, square_X1 + 2 * mixed_XD - mean_XD**2, one)
    second_XD = _correlation(common_X1 - cov_XD, square_X1 - 2 * mixed_XD - mean_XD**2, one)
    return first_XD - second_XD


def _spearman_swapped(
    predicted_XQ: np.ndarray, other_Q: np.ndarray, right_Q: Any, sign_QD: np.ndarray
) -> np.ndarray:
    """Ranks swap, those of all items: they are not taken anew after every swap, which would cost a sort."""
    once_Q1 = np.ones((len(other_Q), 1))
    rank_XQ = np.stack([_centred_ranks(predicted_Q, once_Q1)[:, 0] for predicted_Q in predicted_XQ])
    other_Q, right_Q = (_centred_ranks(value_Q, once_Q1)[:, 0] for value_Q in (other_Q, right_Q))
    return _pearson_swapped(rank_XQ, other_Q, right_Q, sign_QD)


def _correlation(cov: np.ndarray, var_x: np.ndarray, var_y: np.ndarray) -> np.ndarray:
    known = (var_x > _CONSTANT) & (var_y > _CONSTANT)
    scale = np.sqrt(np.where(known, var_x * var_y, 1))
    return np.where(known, np.clip(cov / scale, -1, 1), 0)


def _standard(value_XQ: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1 along the last axis; zeros where all values are equal."""
    from_mean_XQ = value_XQ - value_XQ.mean(axis=-1, keepdims=True)
    deviation_X1 = from_mean_XQ.std(axis=-1, keepdims=True)
    varies_X1 = np.ptp(value_XQ, axis=-1, keepdims=True) > 0
    return np.divide(from_mean_XQ, deviation_X1, out=np.zeros_like(from_mean_XQ), where=varies_X1)


def _centred_ranks(value_Q: np.ndarray, weight_QD: np.ndarray) -> np.ndarray:
    """Mean rank of every value in every draw, less the mean of all ranks, in units of Q: within ± 1/2.

    An item that a draw holds several times is tied with itself.
    """
    level_Q, items = _levels(value_Q), len(value_Q)
    weight_GD = _by_level(level_Q, weight_QD)
    rank_GD = np.cumsum(weight_GD, axis=0)
    rank_GD -= weight_GD / 2
    rank_GD -= items / 2
    rank_GD /= items
    return rank_GD[level_Q]


def _entropy(level_Q: np.ndarray, weight_QD: np.ndarray) -> np.ndarray:
    share_GD = _by_level(level_Q, weight_QD) / len(level_Q)
    return -(share_GD * np.log(np.where(share_GD > 0, share_GD, 1))).sum(axis=0)


def _by_level(level_Q: np.ndarray, weight_QD: np.ndarray) -> np.ndarray:
    order_Q = np.argsort(level_Q, kind="stable")
    first_G = np.flatnonzero(np.diff(level_Q[order_Q], prepend=-1))
    weight_QD = weight_QD[order_Q]
    return weight_QD if len(first_G) == len(level_Q) else np.add.reduceat(weight_QD, first_G, axis=0)


def _levels(value_Q: np.ndarray) -> np.ndarray:
    """0 for the smallest value, 1 for the next, …"""
    return np.unique(value_Q, return_inverse=True)[1].reshape(-1)


MEAN = Statistic(_mean, _mean_swapped)
STATISTICS = {
    "ap": Statistic(_average_precision, bounds=(0, 1)),
    "pearson": Statistic(_pearson, _pearson_swapped, bounds=(-1, 1)),
    "spearman": Statistic(_spearman, _spearman_swapped, bounds=(-1, 1)),
    "v_measure": Statistic(_v_measure, bounds=(0, 1)),
}
# Metrics whose value is in [0, 1] for every item, without their cut-off.
_SHARES = {"ndcg", "recall", "precision", "map", "mrr", "hit", "f1", "accuracy"}
_MEAN_SHARE = Statistic(_mean, _mean_swapped, bounds=(0, 1))


def statistic(metric: str) -> Statistic:
    """What sums up the values of a metric: a mean, unless the metric is one of ``STATISTICS``."""
    mean = _MEAN_SHARE if metric.partition("@")[0] in _SHARES else MEAN
    return STATISTICS.get(metric, mean)
