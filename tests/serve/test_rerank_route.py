"""/v1/rerank and /v2/rerank: the scores of /rerank in Cohere's words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from starlette.testclient import TestClient

from moembed.reranker import Reranker

TEXTS = ["an owl hunts at night", "moles eat worms", "", "the meadow is wide"]
LONG = "mole " * 80
ASKED = {"query": "what does a mole eat?", "documents": TEXTS}


@pytest.fixture(scope="module")
def ranking(open_server: Any, tiny_reranker: Reranker) -> TestClient:
    server: TestClient = open_server(reranker=tiny_reranker)
    return server


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_it_ranks_as_the_route_of_tei_does(ranking: TestClient, tiny_reranker: Reranker, path: str) -> None:
    expected = ranking.post("/rerank", json={"query": ASKED["query"], "texts": TEXTS}).json()
    reply = ranking.post(path, json=ASKED, headers={"x-request-id": "abc"})
    assert reply.status_code == 200
    found = reply.json()
    assert (found["id"], found["model"]) == ("abc", "reranker")
    assert [(one["index"], one["relevance_score"]) for one in found["results"]] == [
        (rank["index"], rank["score"]) for rank in expected
    ]
    assert all(set(one) == {"index", "relevance_score"} for one in found["results"])
    assert found["usage"]["total_tokens"] == tiny_reranker.scored(str(ASKED["query"]), TEXTS).tokens


def test_the_best_alone_with_their_texts(ranking: TestClient) -> None:
    every = ranking.post("/v1/rerank", json=ASKED).json()["results"]
    asked = ASKED | {"documents": [{"text": text} for text in TEXTS], "top_n": 2, "return_documents": True}
    best = ranking.post("/v1/rerank", json=asked).json()["results"]
    assert [one["document"]["text"] for one in best] == [TEXTS[one["index"]] for one in every[:2]]
    assert [one["relevance_score"] for one in best] == [one["relevance_score"] for one in every[:2]]
    assert len(ranking.post("/v1/rerank", json=ASKED | {"top_n": 99}).json()["results"]) == len(TEXTS)


def test_a_pair_that_is_too_long_is_cut_only_on_demand(ranking: TestClient, tiny_reranker: Reranker) -> None:
    asked = {"query": "mole", "documents": ["owl", LONG]}
    reply = ranking.post("/v1/rerank", json=asked)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    cut = ranking.post("/v1/rerank", json=asked | {"truncate": True}).json()
    expected = tiny_reranker.scored("mole", ["owl", LONG]).cut
    assert (cut["truncated_texts"], cut["truncated_tokens"]) == (1, int(expected.sum()))
    assert np.isfinite([one["relevance_score"] for one in cut["results"]]).all()


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"documents": []}, 400, "documents"),
        ({"documents": [7]}, 400, "documents"),
        ({"documents": [{"text": "a", "title": "b"}]}, 400, "title"),
        ({"top_n": 0}, 400, "top_n"),
        ({"max_tokens_per_doc": 5}, 400, "max_tokens_per_doc"),
        ({"model": "another"}, 404, "'another'"),
    ],
)
def test_what_is_wrong_is_one_sentence_in_the_form_of_openai(
    ranking: TestClient, change: dict[str, Any], status: int, said: str
) -> None:
    reply = ranking.post("/v1/rerank", json=ASKED | change)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


def test_the_reranker_goes_by_its_name(open_server: Any, tiny_reranker: Reranker, server: TestClient) -> None:
    named = open_server(reranker=tiny_reranker)
    serving = named.app.state.serving
    serving.settings = serving.settings.model_copy(update={"reranker": "runs/mine/"})
    for name in ("mine", "runs/mine/"):
        reply = named.post("/v1/rerank", json=ASKED | {"model": name})
        assert reply.json()["model"] == "mine"
    assert named.post("/v1/rerank", json=ASKED | {"model": "demo"}).status_code == 404
    missing = server.post("/v1/rerank", json=ASKED | {"model": "any"})
    assert missing.status_code == 424
    assert "--reranker" in missing.json()["error"]["message"]
