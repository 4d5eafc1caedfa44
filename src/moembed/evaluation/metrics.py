"""Retrieval metrics, one value per query, with the definitions of trec_eval.

Every metric is a function of the ranks that a ranking gave to the relevant documents, so those ranks are
computed once and the cost of a metric follows the number of judgements ``R``, not the length of the rankings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moembed.types import UserError

_BLOCK_CELLS = 1 << 17  # results compared with judgements at a time: as many as a cache holds


@dataclass(frozen=True, slots=True)
class Qrels:
    """Relevance judgements of ``Q`` queries, laid end to end.

    Those of query ``q`` are ``document[offset[q]:offset[q + 1]]`` (row numbers) with their ``grade``.
    A grade above zero means relevant and is the gain; documents graded zero or less, or not judged, are not.
    """

    offset: np.ndarray  # (Q + 1,) int64
    document: np.ndarray  # (R,) int64
    grade: np.ndarray  # (R,) float64

    @classmethod
    def from_judgements(
        cls, query_R: np.ndarray, document_R: np.ndarray, grade_R: np.ndarray, queries: int
    ) -> Qrels:
        """Sort judgements given in any order; ``query_R`` holds query rows below ``queries``.

        Raises:
            UserError: a row number out of range, or a document judged twice for one query.
        """
        order = np.lexsort((document_R, query_R))
        query, document = np.asarray(query_R)[order], np.asarray(document_R)[order]
        if len(query) and (query[0] < 0 or query[-1] >= queries or document.min() < 0):
            raise UserError(f"judgements name query rows outside 0..{queries - 1} or negative document rows")
        twice = np.flatnonzero((query[1:] == query[:-1]) & (document[1:] == document[:-1]))
        if len(twice):
            raise UserError(f"query row {query[twice[0]]} judges document row {document[twice[0]]} twice")
        offset = np.searchsorted(query, np.arange(queries + 1))
        return cls(offset, document.astype(np.int64), np.asarray(grade_R, dtype=np.float64)[order])

    def __len__(self) -> int:
        return len(self.offset) - 1

    @property
    def query_R(self) -> np.ndarray:
        """The query row of every judgement."""
        return np.repeat(np.arange(len(self)), np.diff(self.offset))


@dataclass(frozen=True, slots=True)
class Found:
    """The judged documents of all queries: their query, gain and rank (1 = best, inf = not retrieved).

    ``rank_R`` is inf also for those that are not relevant; ``judged_rank_R`` is the rank of all.
    """

    query_R: np.ndarray
    gain_R: np.ndarray  # 0 of those that are not relevant
    rank_R: np.ndarray
    judged_rank_R: np.ndarray
    relevant_Q: np.ndarray  # number of relevant documents per query
    ranked_QK: np.ndarray

    def sum_by_query(self, value_R: np.ndarray) -> np.ndarray:
        return np.bincount(self.query_R, weights=value_R, minlength=len(self.relevant_Q))


Metric = Callable[[Found, int], np.ndarray]


def ndcg(found: Found, k: int) -> np.ndarray:
    """DCG = Σ grade / log2(rank + 1) over the first ``k`` results, divided by the DCG of the ideal ranking.

    Source: Järvelin and Kekäläinen, *Cumulated gain-based evaluation of IR techniques* (2002), linear gain.
    """

    def dcg(rank_R: np.ndarray) -> np.ndarray:
        return found.sum_by_query(found.gain_R / np.log2(rank_R + 1) * (rank_R <= k))

    return dcg(found.rank_R) / dcg(_place_in_query(found.query_R, -found.gain_R))


def recall(found: Found, k: int) -> np.ndarray:
    """Relevant documents among the first ``k`` results / all relevant documents."""
    return found.sum_by_query(found.rank_R <= k) / found.relevant_Q


def precision(found: Found, k: int) -> np.ndarray:
    """Relevant documents among the first ``k`` results / ``k``, even where fewer were retrieved."""
    return found.sum_by_query(found.rank_R <= k) / k


def mrr(found: Found, k: int) -> np.ndarray:
    """1 / rank of the first relevant document, 0 when it is not among the first ``k`` results."""
    first_Q = np.full(len(found.relevant_Q), np.inf)
    np.minimum.at(first_Q, found.query_R, found.rank_R)
    return (first_Q <= k) / first_Q


def average_precision(found: Found, k: int) -> np.ndarray:
    """Σ precision at the rank of each relevant document among the first ``k`` / all relevant documents."""
    nth_R = _place_in_query(found.query_R, found.rank_R)
    return found.sum_by_query(nth_R / found.rank_R * (found.rank_R <= k)) / found.relevant_Q


def hole(found: Found, k: int) -> np.ndarray:
    """Results without a judgement among the first ``k`` / ``k``: how much of the score is a guess.

    Source: Thakur et al., *BEIR* (2021), where a judgement for any query counts and not only one for this.
    """
    retrieved_Q = (found.ranked_QK[:, :k] >= 0).sum(axis=1)
    return (retrieved_Q - found.sum_by_query(found.judged_rank_R <= k)) / k


METRICS: dict[str, Metric] = {
    "ndcg": ndcg,
    "recall": recall,
    "precision": precision,
    "mrr": mrr,
    "map": average_precision,
    "hole": hole,
}


def parse_metric(name: str) -> tuple[str, int | None]:
    """``"ndcg@10"`` -> ``("ndcg", 10)``; ``"map"`` -> ``("map", None)``: the whole ranking counts.

    Raises:
        UserError: unknown metric, or a cut-off that is not a whole number above zero.
    """
    kind, separator, cut = name.partition("@")
    if kind not in METRICS:
        raise UserError(
            f"unknown metric {name!r}; known are {', '.join(METRICS)}, with a cut-off as in ndcg@10"
        )
    if not separator:
        return kind, None
    if not (cut.isascii() and cut.isdigit() and int(cut) > 0):
        raise UserError(f"metric {name!r}: the cut-off after @ must be a whole number above zero")
    return kind, int(cut)


def evaluate_ranking(ranked_QK: np.ndarray, qrels: Qrels, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Score rankings against judgements.

    Args:
        ranked_QK: document row numbers, best first, -1 where a ranking is shorter than ``K``. Of a document
            that occurs twice in a ranking, the better place counts.
        qrels: the judgements of the same queries, in the same order.
        names: metrics such as ``"ndcg@10"``; a cut-off beyond ``K`` sees only the ``K`` results there are.

    Returns:
        For every name one float64 value per query, in 0..1; NaN for a query without any relevant document,
        whose recall and nDCG would be 0/0: leave such queries out of averages (``numpy.nanmean``).

    Raises:
        UserError: an unknown metric, or rankings that do not fit the judgements.
    """
    parsed = [parse_metric(name) for name in names]
    if ranked_QK.ndim != 2 or len(ranked_QK) != len(qrels) or ranked_QK.shape[1] == 0:
        raise UserError(
            f"rankings of shape {ranked_QK.shape} do not fit the judgements of {len(qrels)} queries"
        )
    found = _find(ranked_QK, qrels)
    with np.errstate(invalid="ignore"):  # 0/0 where nothing is relevant, replaced by NaN for every metric
        return {
            name: np.where(found.relevant_Q > 0, METRICS[kind](found, cut or ranked_QK.shape[1]), np.nan)
            for name, (kind, cut) in zip(names, parsed, strict=True)
        }


def _find(ranked_QK: np.ndarray, qrels: Qrels) -> Found:
    query_R, gain_R = qrels.query_R, np.maximum(qrels.grade, 0)
    rank_R = np.empty(len(query_R))
    step = max(1, _BLOCK_CELLS // ranked_QK.shape[1])
    for start in range(0, len(query_R), step):
        block = slice(start, start + step)
        hit_RK = ranked_QK[query_R[block]] == qrels.document[block, None]
        first_R = hit_RK.argmax(axis=1)
        rank_R[block] = np.where(hit_RK[np.arange(len(first_R)), first_R], first_R + 1, np.inf)
    return Found(
        query_R=query_R,
        gain_R=gain_R,
        rank_R=np.where(gain_R > 0, rank_R, np.inf),
        judged_rank_R=rank_R,
        relevant_Q=np.bincount(query_R, weights=gain_R > 0, minlength=len(qrels)),
        ranked_QK=ranked_QK,
    )


def _place_in_query(query_R: np.ndarray, key_R: np.ndarray) -> np.ndarray:
    """1 for the entry with the smallest key of its query, 2 for the next, ..."""
    order = np.lexsort((key_R, query_R))
    sorted_query = query_R[order]
    place_R = np.empty(len(order))
    place_R[order] = np.arange(len(order)) - np.searchsorted(sorted_query, sorted_query) + 1
    return place_R
