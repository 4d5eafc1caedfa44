"""/search: the hits are those of the index itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from moembed.embedder import Embedder
from moembed.reranker import Reranker
from moembed.search.embed import EmbedConfig
from moembed.search.fde import FdeConfig
from moembed.search.index import Index
from moembed.search.index_file import index_file
from moembed.serve.searching import open_index
from moembed.types import UserError

DOCUMENTS = [
    {"id": "d1", "text": "moles eat worms", "year": 2001},
    {"id": "d2", "text": "an owl hunts voles at night", "year": 2010},
    {"id": "d3", "text": "<script>alert('mole')</script>", "year": 2011},
    {"id": "d4", "text": "the meadow is wide", "year": None},
]


def make_index(embedder: Embedder, folder: Path, rows: list[dict[str, Any]]) -> Index:
    """The index of these rows in ``folder``; one that is there is updated."""
    source = folder / "documents.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompt, name = embedder.role_prefix("document"), embedder.role_prompt("document")
    index_file(embedder, source, folder / "index", EmbedConfig(prompt=prompt, prompt_name=name))
    return open_index(folder, embedder)


@pytest.fixture(scope="module")
def index(served_embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_index(served_embedder, tmp_path_factory.mktemp("index"), DOCUMENTS)


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


def ask(server: TestClient, **body: Any) -> list[dict[str, Any]]:
    reply = server.post("/search", json={"query": "what does a mole eat?", "k": 10} | body)
    assert reply.status_code == 200, reply.text
    (found,) = reply.json()["results"]
    return found


@pytest.mark.parametrize(
    "where", ['id != "d1" and year >= 2010', {"column": "id", "op": "in", "value": ["d2", "d4"]}]
)
def test_conditions_and_words_are_those_of_the_index(
    searching: TestClient, index: Index, served_embedder: Embedder, where: Any
) -> None:
    query = "what does a mole eat?"
    vector = served_embedder.encode_query([query])
    for options in ({}, {"hybrid": True}, {"hybrid": True, "weight": 0.3}):
        (expected,) = index.find(vector, texts=[query], k=10, where=where, **options)
        found = ask(searching, where=where, **options)
        assert [hit["id"] for hit in found] == [hit.id for hit in expected]
        assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert found


def test_fewer_coordinates(searching: TestClient, served_embedder: Embedder) -> None:
    documents = [row["text"] for row in DOCUMENTS]
    cosines = served_embedder.encode_document(documents, dim=8) @ served_embedder.encode_query(
        "what does a mole eat?", dim=8
    )
    found = ask(searching, dimensions=8)
    assert [hit["row"] for hit in found] == [DOCUMENTS[n] for n in np.argsort(-cosines)]
    assert [hit["score"] for hit in found] == pytest.approx(sorted(cosines, reverse=True), abs=1e-5)
    assert ask(searching, dimensions=16) == ask(searching)


def test_updates_are_served_without_a_restart(
    open_server: Any, served_embedder: Embedder, tmp_path: Path
) -> None:
    made = make_index(served_embedder, tmp_path, DOCUMENTS)
    server = open_server(index=made)
    assert len(ask(server)) == 4
    make_index(served_embedder, tmp_path, [*DOCUMENTS, {"id": "d5", "text": "worms", "year": 1}])
    assert {hit["id"] for hit in ask(server)} == {"d1", "d2", "d3", "d4", "d5"}
    (tmp_path / "index" / "manifest.json").write_text("{")
    assert len(ask(server)) == 5  # the version before serves on


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"query": []}, 400, "at least one text"),
        ({"query": "a", "k": 0}, 400, "at least 1"),
        ({"query": "a", "k": 1001}, 400, "at most 1000"),
        ({"query": 5}, 400, "query"),
        ({"query": "a", "rerank": True}, 424, "--reranker"),
        ({"query": "mole " * 60}, 400, "shorten it, or start the server with --truncate truncate"),
        ({"query": "a", "where": "year >"}, 400, "year"),
        ({"query": "a", "where": "yaer = 2001"}, 400, "yaer"),
        ({"query": "a", "where": "year = 'old'"}, 400, "year"),
        ({"query": "a", "where": {"column": "year"}}, 400, "op"),
        ({"query": "a", "where": "year = 1 or " * 2000 + "year = 1"}, 400, "longer than"),
        ({"query": "a", "where": "(" * 3000 + "year = 1" + ")" * 3000}, 400, "inside"),
        ({"query": "a", "weight": 0.5}, 400, "hybrid"),
        ({"query": "a", "weight": 2, "hybrid": True}, 400, "at most 1"),
        ({"query": "a", "dimensions": 5}, 400, "8, 16"),
        ({"query": "a", "dimensions": 17}, 400, "more than"),
        ({"query": "a", "dimensions": 8, "hybrid": True}, 400, "hybrid"),
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


def test_a_multi_vector_index_is_refused(make_model: Any, tmp_path: Path) -> None:
    model = make_model(pooling="tokens", num_layers=1)
    (tmp_path / "documents.jsonl").write_text(json.dumps(DOCUMENTS[0]))
    config = EmbedConfig(multivector=FdeConfig(model.dim, repetitions=2, k_sim=2, d_proj=3))
    index_file(model, tmp_path / "documents.jsonl", tmp_path / "index", config)
    with pytest.raises(UserError, match="is a multi-vector index, which is not served: search it with"):
        open_index(tmp_path, model)


def test_a_condition_that_is_too_deep_is_a_sentence(searching: TestClient) -> None:
    """Deeper than orjson writes, and not deeper than it reads."""
    where: Any = {"column": "year", "op": "=", "value": 1}
    for _ in range(300):
        where = {"not": where}
    content = json.dumps({"query": "mole", "where": where})
    reply = searching.post("/search", content=content, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert "too deep" in reply.json()["error"]["message"]


def test_a_small_body_cannot_ask_for_millions_of_rows(searching: TestClient) -> None:
    assert searching.post("/search", json={"query": ["mole"] * 10, "k": 1000}).status_code == 200
    reply = searching.post("/search", json={"query": ["mole"] * 11, "k": 1000})
    assert reply.status_code == 413
    assert reply.json()["error"]["param"] == "k"


def test_an_index_that_is_copied_in_place_is_found_when_it_is_whole(
    open_server: Any, served_embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest is there first, and for a while no version can be opened."""
    monkeypatch.setattr("moembed.serve.searching._RETRY", 0.0)
    (tmp_path / "new").mkdir()
    opened = make_index(served_embedder, tmp_path, DOCUMENTS[:2])
    fresh = make_index(served_embedder, tmp_path / "new", DOCUMENTS)
    server = open_server(index=opened)

    def ids() -> set[str]:
        (hits,) = server.post("/search", json={"query": "mole", "k": 9}).json()["results"]
        return {hit["id"] for hit in hits}

    assert ids() == {"d1", "d2"}
    shutil.rmtree(opened.path)
    gone = server.post("/search", json={"query": "mole"})
    assert gone.status_code == 503
    assert gone.json()["error"]["code"] == "index_unavailable"
    opened.path.mkdir()
    files = sorted(fresh.path.iterdir(), key=lambda file: file.name != "manifest.json")
    for file in files:
        shutil.copy(file, opened.path)
        if file is not files[-1]:
            assert server.post("/search", json={"query": "mole"}).status_code == 503
    assert ids() == {"d1", "d2", "d3", "d4"}
