"""What a system scores on a retrieval task: embed or search, rank, measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moembed.evaluate.beir import RetrievalTask
from moembed.evaluate.bm25 import bm25_search
from moembed.evaluate.metrics import evaluate_ranking, parse_metric
from moembed.search import index
from moembed.types import Hits, UserError

DEFAULT_METRICS = ("ndcg@10", "recall@10", "mrr@10")

Encode = Callable[[list[str]], np.ndarray]


@dataclass(frozen=True, slots=True)
class Result:
    """Scores of one system on one task, one per query, and the seconds it took from texts to rankings."""

    task: str
    per_query: dict[str, np.ndarray]
    seconds: float

    @property
    def mean(self) -> dict[str, float]:
        return {name: float(score_Q.mean()) for name, score_Q in self.per_query.items()}


def evaluate_retrieval(
    task: RetrievalTask,
    encode_query: Encode,
    encode_document: Encode,
    metrics: Sequence[str] = DEFAULT_METRICS,
    top_k: int = 100,
) -> Result:
    """Embed, rank all documents of the task by cosine (exactly, ties by lower row) and score the rankings.

    Args:
        encode_query, encode_document: texts -> ``(texts, M)`` vectors; prompts are their business.
        metrics: see ``metrics.parse_metric``; those without a cut-off look at the whole ranking.
        top_k: length of the rankings, or more where a metric's cut-off asks for it.

    Raises:
        UserError: unknown metrics (before anything is embedded), or vectors that are not finite, not one per
            text, or of different widths.
    """

    def rank(k: int) -> Hits:
        query_QM = _encode(encode_query, task.queries, "queries")
        document_NM = _encode(encode_document, task.documents, "documents")
        return index.top_k(query_QM, document_NM, k)

    return _evaluate(task, rank, metrics, top_k)


def evaluate_bm25(task: RetrievalTask, metrics: Sequence[str] = DEFAULT_METRICS, top_k: int = 100) -> Result:
    """What BM25 scores on the task; arguments and result as in ``evaluate_retrieval``."""
    return _evaluate(task, lambda k: bm25_search(task.queries, task.documents, k), metrics, top_k)


def _evaluate(task: RetrievalTask, rank: Callable[[int], Hits], metrics: Sequence[str], top_k: int) -> Result:
    cuts = [parse_metric(name)[1] or top_k for name in metrics]
    start = time.perf_counter()
    ranked_QK = rank(max([top_k, *cuts])).index
    seconds = time.perf_counter() - start
    return Result(task.name, evaluate_ranking(ranked_QK, task.qrels, metrics), seconds)


def _encode(encode: Encode, texts: list[str], what: str) -> np.ndarray:
    vectors = encode(texts)
    if len(vectors) != len(texts):
        raise UserError(f"the encoder made {len(vectors)} vectors of {len(texts)} {what}: one each is needed")
    return vectors
