"""A model of token vectors is evaluated by exact MaxSim over all documents, or over those that are judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from conftest import MakeModel
from judged import DOCUMENTS, QUERIES, task_of
from moembed.encoding import TokenVectors, no_bar
from moembed.evaluation import tasks
from moembed.evaluation.files import PairTask
from moembed.evaluation.metrics import evaluate_ranking
from moembed.evaluation.tasks import evaluate
from moembed.losses.late_interaction import maxsim
from moembed.runs.system import EvaluationOptions, evaluate_system
from moembed.types import UserError


@pytest.mark.parametrize("kind", ["retrieval", "reranking"])
def test_rankings_are_those_of_all_scores(make_model: MakeModel, kind: str) -> None:
    model, task = make_model(pooling="tokens"), task_of(kind)
    outcome = evaluate_system("late", model, [task], EvaluationOptions(), no_bar)
    queries, documents = (
        model.encode_tokens(QUERIES, role="query"),
        model.encode_tokens(DOCUMENTS, role="document"),
    )
    score_QN = maxsim(
        torch.from_numpy(queries.vector_TM),
        torch.from_numpy(documents.vector_TM),
        queries.length_N.tolist(),
        documents.length_N.tolist(),
    ).numpy()
    if kind == "reranking":  # those that are not judged are no candidates
        judged = np.zeros((3, 5), bool)
        judged[task.qrels.query_R, task.qrels.document] = True
        score_QN[~judged] = -9
    ranked_QK = np.argsort(-score_QN, axis=1)[:, : 2 if kind == "reranking" else 5]
    expected = evaluate_ranking(ranked_QK, task.qrels, ["ndcg@10"])["ndcg@10"]
    found = outcome.scores["some"].values["ndcg@10"]
    np.testing.assert_allclose(found, expected)
    assert (expected < 1).any()
    assert outcome.truncated["some"] == 0


def test_reranking_scores_what_is_judged_alone(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, scored = tasks.maxsim_scores, []

    def counted(query_TM: np.ndarray, documents: TokenVectors) -> np.ndarray:
        scored.append(len(documents))
        return real(query_TM, documents)

    monkeypatch.setattr(tasks, "maxsim_scores", counted)
    evaluate(task_of("reranking"), make_model(pooling="tokens", num_layers=1))
    assert scored == [2, 2, 2]


@pytest.mark.parametrize("options", [{"codecs": ("int8",)}, {"dims": (4,)}, {"cache": "x"}, {"processes": 2}])
def test_sizes_of_one_vector_are_refused(make_model: MakeModel, options: dict[str, Any]) -> None:
    model = make_model(pooling="tokens", num_layers=1)
    with pytest.raises(UserError, match=rf"{next(iter(options))} is for models of one vector"):
        evaluate_system("late", model, [task_of("retrieval")], EvaluationOptions(**options), no_bar)
    evaluate(task_of("retrieval"), model)  # without, it goes


def test_tasks_without_documents_have_no_score_of_it(make_model: MakeModel) -> None:
    pairs = PairTask("sts", "sts", ["a", "b", "c"], ["b", "c", "a"], np.array([1.0, 2, 3]), [""] * 3, [])
    model, ranked = make_model(pooling="tokens", num_layers=1), task_of("retrieval")
    outcome = evaluate_system("late", model, [pairs, ranked], EvaluationOptions(), no_bar)
    assert list(outcome.scores) == ["some"]
    with pytest.raises(UserError, match="a vector of every token"):
        evaluate_system("late", model, [pairs], EvaluationOptions(), no_bar)
