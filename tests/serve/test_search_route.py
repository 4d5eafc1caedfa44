"""/search: the hits are those of the index itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from moembed.embedder import Embedder
from moembed.reranker import Reranker
from moembed.search.embed import EmbedConfig, embed_file
from moembed.search.index import Index
from moembed.serve.searching import open_index
from moembed.types import UserError

DOCUMENTS = [
    {"id": "d1", "text": "moles eat worms"},
    {"id": "d2", "text": "an owl hunts voles at night"},
    {"id": "d3", "text": "<script>alert('mole')</script>"},
    {"id": "d4", "text": "the meadow is wide"},
]


@pytest.fixture(scope="module")
def index(served_embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("index")
    source = folder / "documents.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    embedder = served_embedder
    prompt, name = embedder.role_prefix("document"), embedder.role_prompt("document")
    embed_file(embedder, source, folder / "index", EmbedConfig(prompt=prompt, prompt_name=name))
    return open_index(folder, embedder)


@pytest.fixture(scope="module")
def searching(open_server: Any, index: Index) -> TestClient:
    return open_server(index=index)


def test_hits_are_those_of_the_index(searching: TestClient, index: Index, served_embedder: Embedder) -> None:
    queries = ["what does a mole eat?", "where do owls hunt"]
    reply = searching.post("/search", json={"query": queries, "k": 3}).json()
    hits = index.search(served_embedder.encode_query(queries), 3)
    for found, numbers, scores in zip(reply["results"], hits.index, hits.score, strict=True):
        assert [hit["row"] for hit in found] == [DOCUMENTS[n] for n in numbers]
        assert [hit["id"] for hit in found] == [DOCUMENTS[n]["id"] for n in numbers]
        assert [hit["score"] for hit in found] == pytest.approx(scores.tolist(), abs=1e-5)
    assert set(reply["seconds"]) == {"embed", "search"}
    (one,) = searching.post("/search", json={"query": queries[0], "k": 3}).json()["results"]
    assert [hit["id"] for hit in one] == [hit["id"] for hit in reply["results"][0]]


def test_more_than_there_is_gives_all(searching: TestClient) -> None:
    (found,) = searching.post("/search", json={"query": "mole", "k": 100}).json()["results"]
    assert {hit["id"] for hit in found} == {row["id"] for row in DOCUMENTS}


def test_documents_come_back_as_they_are(searching: TestClient) -> None:
    reply = searching.post("/search", json={"query": "mole", "k": 100})
    assert reply.headers["content-type"] == "application/json"
    assert DOCUMENTS[2]["text"] in [hit["row"]["text"] for hit in reply.json()["results"][0]]


def test_a_reranker_orders_the_hits(open_server: Any, index: Index, tiny_reranker: Reranker) -> None:
    server = open_server(index=index, reranker=tiny_reranker)
    (found,) = server.post("/search", json={"query": "mole", "k": 4, "rerank": True}).json()["results"]
    texts = [hit["row"]["text"] for hit in found]
    scores = [hit["score"] for hit in found]
    assert scores == pytest.approx(tiny_reranker.scored("mole", texts).array.tolist(), abs=1e-5)
    assert scores == sorted(scores, reverse=True)
    assert len(set(texts)) == 4


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"query": []}, 400, "at least one text"),
        ({"query": "a", "k": 0}, 400, "at least 1"),
        ({"query": "a", "k": 1001}, 400, "at most 1000"),
        ({"query": 5}, 400, "query"),
        ({"query": "a", "rerank": True}, 424, "--reranker"),
        ({"query": "mole " * 60}, 400, "tokens"),
    ],
)
def test_what_is_wrong_is_said(searching: TestClient, body: dict[str, Any], status: int, said: str) -> None:
    reply = searching.post("/search", json=body)
    assert reply.status_code == status
    assert said in reply.json()["error"]["message"]


def test_without_an_index_it_says_so(server: TestClient) -> None:
    reply = server.post("/search", json={"query": "a"})
    assert reply.status_code == 404
    assert "--index" in reply.json()["error"]["message"]


def test_an_index_of_another_model_is_refused(index: Index, make_model: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="space"):
        open_index(index.path, make_model(seed=9))
    with pytest.raises(UserError, match="not an index"):
        open_index(tmp_path, make_model(seed=9))
