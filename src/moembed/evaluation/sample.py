"""A smaller task that ranks systems like the whole one: some queries, and the documents that matter to them.

A retrieval score hangs on the documents near the top. Those are the relevant ones and those that some system
ranks high; most others are never seen. So a sample keeps both for every query it keeps, which may be a small
part of the corpus. Scores on it are higher than on the whole; the order of systems and of queries is what
should stay, and ``agreement`` measures whether it does.

Source: Enevoldsen et al., *MMTEB: Massive Multilingual Text Embedding Benchmark* (2025), section on
downsampling by hard negatives of BM25 and of reference models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moembed.compare.scores import Scores, statistic
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.bm25 import bm25_search
from moembed.evaluation.metrics import Qrels
from moembed.types import UserError


def sample(
    task: RetrievalTask,
    queries: int,
    hard: int = 100,
    seed: int = 0,
    rankings: Sequence[np.ndarray] | None = None,
    documents: int = 0,
) -> RetrievalTask:
    """``queries`` random queries of a task with all their relevant documents and hard others.

    The same seed gives the same queries, and fewer of them are among the more.

    Args:
        hard: of every ranking the best so many documents of each query are kept.
        rankings: document rows, best first, ``(Q, K)`` for all queries of the task (-1 where a ranking is
            shorter), of the systems that say what is hard; None: of BM25.
        documents: where fewer than these are kept, others are drawn at random until they are as many.

    Returns:
        The task itself where nothing is left out; else its ``notes`` say what was.

    Raises:
        UserError: no query asked for, rankings that do not fit the task, bm25s is not installed.
    """
    query_Q, document_N = choose(task, queries, hard, seed, rankings, documents)
    return subset(task, query_Q, document_N)


def choose(
    task: RetrievalTask,
    queries: int,
    hard: int = 100,
    seed: int = 0,
    rankings: Sequence[np.ndarray] | None = None,
    documents: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the queries and of the documents that ``sample`` keeps, in order."""
    if queries < 1 or hard < 0:
        raise UserError(f"a sample needs at least 1 query and 0 hard documents, not {queries} and {hard}")
    rng = np.random.default_rng(seed)
    query_Q = np.sort(rng.permutation(len(task.queries))[:queries])
    size = len(task.documents)
    if documents >= size or (rankings is None and hard >= size):
        return query_Q, np.arange(size)
    keep_N = np.zeros(size, dtype=bool)
    keep_N[task.qrels.document[np.isin(task.qrels.query_R, query_Q) & (task.qrels.grade > 0)]] = True
    for ranked_QK in _of_queries(task, query_Q, hard, rankings):
        keep_N[ranked_QK[ranked_QK >= 0]] = True
    left_N = rng.permutation(np.flatnonzero(~keep_N))
    keep_N[left_N[: max(0, documents - int(keep_N.sum()))]] = True
    return query_Q, np.flatnonzero(keep_N)


def subset(task: RetrievalTask, query_Q: np.ndarray, document_N: np.ndarray) -> RetrievalTask:
    """The task of these rows; judgements of other documents are dropped, and the notes say so.

    The rows are in order and hold a relevant document of every query.
    """
    if len(query_Q) == len(task.queries) and len(document_N) == len(task.documents):
        return task
    qrels = task.qrels
    kept_R = np.isin(qrels.query_R, query_Q) & np.isin(qrels.document, document_N)
    ids = [task.query_ids[row] for row in query_Q]
    easier = ": scores are higher than on the whole task" if len(document_N) < len(task.documents) else ""
    return replace(
        task,
        queries=[task.queries[row] for row in query_Q],
        documents=[task.documents[row] for row in document_N],
        qrels=Qrels.from_judgements(
            np.searchsorted(query_Q, qrels.query_R[kept_R]),
            np.searchsorted(document_N, qrels.document[kept_R]),
            qrels.grade[kept_R],
            len(query_Q),
        ),
        query_ids=ids,
        document_ids=[task.document_ids[row] for row in document_N],
        notes=[
            *task.notes,
            f"a sample of {len(query_Q)} of {len(task.queries)} queries and {len(document_N)} of "
            f"{len(task.documents)} documents{easier}",
        ],
        language={query: task.language[query] for query in ids if query in task.language},
    )


def _of_queries(
    task: RetrievalTask, query_Q: np.ndarray, hard: int, rankings: Sequence[np.ndarray] | None
) -> list[np.ndarray]:
    """The first ``hard`` documents of every ranking, for the queries ``query_Q`` alone."""
    if rankings is None:
        if not hard:
            return []
        return [bm25_search([task.queries[row] for row in query_Q], task.documents, hard).index]
    for ranked_QK in rankings:
        fits = ranked_QK.ndim == 2 and len(ranked_QK) == len(task.queries)
        if not fits or ranked_QK.max(initial=-1) >= len(task.documents):
            raise UserError(
                f"a ranking of shape {ranked_QK.shape} does not fit the {len(task.queries)} queries and "
                f"{len(task.documents)} documents of {task.name}"
            )
    return [ranked_QK[query_Q, :hard] for ranked_QK in rankings]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well a sample ranks as the whole task does; 1 is the same order, 0 none in common.

    ``queries``: of each system, Spearman's correlation of the scores of the queries.
    ``systems``: Kendall's correlation of the mean scores of the systems; None for fewer than three.
    """

    queries: dict[str, float]
    systems: float | None

    def __str__(self) -> str:
        queries = ", ".join(f"{name} {value:.3f}" for name, value in self.queries.items())
        systems = "" if self.systems is None else f"; of systems (Kendall) {self.systems:.3f}"
        return f"rank correlation with the whole task: of queries (Spearman) {queries}{systems}"


def agreement(full: Mapping[str, Scores], sampled: Mapping[str, Scores], metric: str) -> Agreement:
    """Compare the scores of the same systems on a sample and on the whole task it was taken from.

    Both are looked at for the queries of the sample alone.
    """
    pairs = {name: _paired(full[name], sampled[name], metric) for name in sampled}
    queries = {name: rank_correlation(*pair) for name, pair in pairs.items()}
    whole_S, sample_S = (np.array([pair[side].mean() for pair in pairs.values()]) for side in (0, 1))
    return Agreement(queries, kendall(whole_S, sample_S) if len(pairs) >= 3 else None)


def _paired(full: Scores, sampled: Scores, metric: str) -> tuple[np.ndarray, np.ndarray]:
    row = {item: row for row, item in enumerate(full.item)}
    if missing := [item for item in sampled.item if item not in row]:
        raise UserError(f"{sampled.task}: the query {missing[0]!r} of the sample is not in the whole task")
    return full.values[metric][[row[item] for item in sampled.item]], sampled.values[metric]


def rank_correlation(full: Sequence[float] | np.ndarray, sampled: Sequence[float] | np.ndarray) -> float:
    """Spearman's ρ, the correlation of the ranks, ties at their mean rank; 0 where a side is constant."""
    return statistic("spearman")(np.stack([sampled, full], axis=1).astype(np.float64))


def kendall(full: Sequence[float] | np.ndarray, sampled: Sequence[float] | np.ndarray) -> float:
    """Kendall's τ_b: (pairs in the same order - pairs in reverse) / √(untied here · untied there).

    0 where a side is constant.
    """
    order_PP, other_PP = (np.sign(np.subtract.outer(side, side)) for side in map(np.asarray, (full, sampled)))
    untied = np.sqrt((order_PP**2).sum() * (other_PP**2).sum())
    return float((order_PP * other_PP).sum() / untied) if untied else 0.0
