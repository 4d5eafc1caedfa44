"""A second look: what a system found, in the order of a cross-encoder, which reads both texts together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moembed.compare.scores import Scores
from moembed.encoding import Progress
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.tasks import metrics_of, score_ranking
from moembed.reranker import Reranker
from moembed.types import UserError


def rerank(
    task: RetrievalTask,
    found: Scores,
    judge: Reranker,
    candidates: int,
    metrics: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> tuple[Scores, int]:
    """Scores of a task once the first ``candidates`` documents of every query are ordered by the ``judge``.

    Equal ones stay in the order in which they were found, and so do all that come behind. What was not among
    the candidates cannot be found: recall of the candidates is the most that can be reached.

    Args:
        found: of the system that searched, with its rankings.
        progress: called with the number of pairs scored since the last call.

    Returns:
        The scores, and how many pairs of query and document were cut, being longer than the judge reads.

    Raises:
        UserError: the judge gives a score that is no number.
    """
    assert found.ranked_QK is not None
    ranked_QK, cut = found.ranked_QK.copy(), 0
    for query, ranked_K in zip(task.queries, ranked_QK, strict=True):
        row_C = ranked_K[:candidates]
        row_C = row_C[row_C >= 0].copy()
        scored = judge.scored(query, [task.documents[row] for row in row_C], progress=progress)
        if not np.isfinite(scored.array).all():
            raise UserError(f"{task.name}: the reranker gives a score that is no number for {query!r:.60}")
        ranked_K[: len(row_C)] = row_C[np.argsort(-scored.array, kind="stable")]
        cut += int((scored.cut > 0).sum())
    return score_ranking(task, metrics_of(task.kind, metrics), ranked_QK), cut


def num_pairs(found: Scores, candidates: int) -> int:
    """How many pairs of query and document the judge reads."""
    assert found.ranked_QK is not None
    return int((found.ranked_QK[:, :candidates] >= 0).sum())
