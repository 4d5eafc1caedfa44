"""One ranking of two: that of the vectors and that of BM25.

By ranks (reciprocal rank fusion): ``score(d) = Σ_r 1 / (60 + rank_r(d))`` over the rankings r that hold d,
ranks from 1. Source: Cormack, Clarke and Büttcher, *Reciprocal Rank Fusion* (2009).

By weight w: ``score(d) = w · cos(q, d) + (1 - w) · BM25(q, d) / max BM25(q, ·)``.

The candidates are the first ``window(k)`` documents of either ranking; BM25 holds only documents that share a
term with the query.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moembed.types import UserError

RANK_OFFSET = 60


def window(k: int) -> int:
    """Documents of either ranking that are looked at for the best ``k``."""
    return max(100, 4 * k)


def require_weight(weight: float | None) -> None:
    if weight is not None and not 0 <= weight <= 1:
        raise UserError(f"the weight of the vectors must lie between 0 and 1, got {weight}")


def best_terms(score_N: np.ndarray, count: int) -> np.ndarray:
    """The rows of the ``count`` highest scores above 0, best first, ties by lower row."""
    row_K = np.flatnonzero(score_N > 0)
    if len(row_K) > count:
        bar = np.partition(score_N[row_K], -count)[-count]
        row_K = row_K[score_N[row_K] >= bar]
    return row_K[np.argsort(-score_N[row_K], kind="stable")][:count]


def by_ranks(rankings: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of the best ``k``, ties by lower row."""
    row_C = np.unique(np.concatenate(rankings))
    score_C = np.zeros(len(row_C))
    for ranking in rankings:
        score_C[np.searchsorted(row_C, ranking)] += 1 / (RANK_OFFSET + 1 + np.arange(len(ranking)))
    return _best(row_C, score_C, k)


def by_weight(
    row_C: np.ndarray, cosine_C: np.ndarray, term_C: np.ndarray, weight: float, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of the best ``k`` of the candidates ``row_C``, ties by lower row.

    Args:
        term_C: BM25, as a share of the highest of this query.
    """
    return _best(row_C, weight * cosine_C + (1 - weight) * term_C, k)


def _best(row_C: np.ndarray, score_C: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((row_C, -score_C))[:k]
    return row_C[order], score_C[order]
