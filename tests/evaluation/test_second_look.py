"""A reranker behind a system: as if each query's candidates were ranked by it one by one."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import MakeModel
from judged import task_of
from moembed.encoding import no_bar
from moembed.evaluation.metrics import evaluate_ranking
from moembed.evaluation.second_look import rerank
from moembed.evaluation.tasks import evaluate, evaluate_bm25
from moembed.reranker import Reranker, Scores
from moembed.runs.evaluate import evaluate as evaluate_systems
from moembed.runs.system import EvaluationOptions
from moembed.types import UserError


class Judge(Reranker):
    """Scores that are known: of a text its place among ``right`` counted from the end, 0 for all others."""

    def __init__(self, *right: str) -> None:
        self.right, self.asked = list(right), []

    def scored(self, query: str, texts: list[str], **_: object) -> Scores:  # type: ignore[override]
        self.asked.append(len(texts))
        value = [1.0 + self.right[::-1].index(text) if text in self.right else 0.0 for text in texts]
        return Scores(np.array(value, dtype=np.float32), np.array([text == "worms" for text in texts]), 0)


@pytest.mark.parametrize("kind", ["retrieval", "reranking"])
def test_the_first_candidates_are_put_in_order_and_no_others(make_model: MakeModel, kind: str) -> None:
    task = task_of(kind)
    found = evaluate(task, make_model())
    assert found.ranked_QK is not None
    for candidates in (1, 2, 3, 9):
        judge = Judge("worms", "the night is long")
        scores, cut = rerank(task, found, judge, candidates)
        expected, reads_worms = found.ranked_QK.copy(), 0
        for ranked_K in expected:
            first = [row for row in ranked_K[:candidates].tolist() if row >= 0]
            reads_worms += 3 in first
            ranked_K[: len(first)] = sorted(first, key=lambda row: {3: 0, 4: 1}.get(row, 2))
        np.testing.assert_array_equal(scores.ranked_QK, expected)
        for metric, value_Q in scores.values.items():
            np.testing.assert_array_equal(value_Q, evaluate_ranking(expected, task.qrels, [metric])[metric])
        assert cut == reads_worms
        assert max(judge.asked) <= candidates
    if kind == "retrieval":
        assert (scores.values["ndcg@10"] != found.values["ndcg@10"]).any()


def test_one_candidate_and_a_judge_without_an_opinion_change_nothing(make_model: MakeModel) -> None:
    task = task_of("retrieval")
    for found in (evaluate(task, make_model()), evaluate_bm25(task)):
        assert found is not None
        for judge, candidates in ((Judge("worms"), 1), (Judge(), 5)):
            scores, _ = rerank(task, found, judge, candidates)
            np.testing.assert_array_equal(scores.ranked_QK, found.ranked_QK)


def test_a_score_that_is_no_number_is_refused(make_model: MakeModel) -> None:
    class Broken(Judge):
        def scored(self, query: str, texts: list[str], **_: object) -> Scores:  # type: ignore[override]
            return Scores(np.full(len(texts), np.nan, dtype=np.float32), np.zeros(len(texts)), 0)

    with pytest.raises(UserError, match="some: the reranker gives a score that is no number"):
        rerank(task_of("retrieval"), evaluate(task_of("retrieval"), make_model()), Broken(), 2)


def test_only_named_systems_are_reranked_and_only_where_there_are_documents(make_model: MakeModel) -> None:
    with pytest.raises(UserError, match="processes, candidates and sample are at least 1"):
        EvaluationOptions(candidates=0)
    judge = Judge("worms")
    judge.source, judge.num_parameters = "judge", lambda active=False: 1  # type: ignore[method-assign]
    type(judge).dtype = property(lambda self: "float32")  # type: ignore[assignment]
    options = EvaluationOptions(rerank=judge, candidates=2, dtype="float32")
    result = evaluate_systems({"mine": make_model()}, task_of("retrieval"), options, no_bar)
    assert result.systems == ["bm25", "static", "mine", "mine + reranker"]
    assert result.reference == "mine + reranker"
