"""TEI's routes: bare lists, its error object and its statuses."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

from live_server import live
from moembed.embedder import Embedder
from moembed.reranker import Reranker, Scores

QUESTION = {"query": "q", "texts": ["a"]}
SHORT = ["moles eat worms", "", "what does a mole eat?"]
LONG = "mole " * 60
TOO_LONG = "text 0 has 62 tokens, and this model reads 32"


def refusal(reply: Any, status: int, kind: str = "Validation") -> str:
    assert reply.status_code == status, reply.text
    error = reply.json()
    assert set(error) == {"error", "error_type"}
    assert error["error_type"] == kind
    return error["error"]


def close(found: Any, expected: np.ndarray) -> bool:
    array = np.array(found, dtype=np.float32)
    return array.shape == expected.shape and np.allclose(array, expected, atol=1e-5)


def test_embed_gives_a_bare_list(server: TestClient, served_embedder: Embedder) -> None:
    expected = served_embedder.encode(SHORT)
    assert close(server.post("/embed", json={"inputs": SHORT}).json(), expected)
    assert close(server.post("/embed", json={"inputs": SHORT[0]}).json(), expected[:1])
    rows, _ = served_embedder.rows(SHORT)
    assert close(server.post("/embed", json={"inputs": rows}).json(), expected)
    full = {"normalize": True, "truncate": False, "truncation_direction": "Right", "dimensions": 8}
    found = server.post("/embed", json={"inputs": SHORT, "prompt_name": "query", **full})
    assert close(found.json(), served_embedder.encode(SHORT, prompt_name="query", dim=8))


def test_headers_say_what_was_read_and_cut(server: TestClient, served_embedder: Embedder) -> None:
    reply = server.post("/embed", json={"inputs": ["owl", LONG], "truncate": True})
    headers = reply.headers
    assert (headers["x-compute-tokens"], headers["x-truncated-texts"]) == (str(3 + 32), "1")
    assert headers["x-truncated-tokens"] == str(62 - 32)
    assert headers["x-space"] == served_embedder.space()


def test_a_long_text_is_413_unless_it_may_be_cut(server: TestClient) -> None:
    for asked in ({}, {"truncate": False}, {"truncate": None}):
        said = refusal(server.post("/embed", json={"inputs": LONG} | asked), 413)
        assert said == f"{TOO_LONG}: shorten it, or send truncate: true"


def test_a_long_text_of_similarity_names_the_field_that_it_has(server: TestClient) -> None:
    inputs = {"source_sentence": LONG, "sentences": ["owl"]}
    said = refusal(server.post("/similarity", json={"inputs": inputs}), 413)
    assert said == f"{TOO_LONG}: shorten it, or send parameters with truncate: true"
    may_cut = {"inputs": inputs, "parameters": {"truncate": True}}
    assert server.post("/similarity", json=may_cut).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/embed", {"inputs": []}, "empty"),
        ("/embed", {}, "missing"),
        ("/embed", {"inputs": "a", "normalize": False}, "length 1"),
        ("/embed", {"inputs": "a", "truncation_direction": "Left"}, "right"),
        ("/embed", {"inputs": "a", "truncation_direction": "Up"}, "Left"),
        ("/embed", {"inputs": "a", "truncate": "yes"}, "true or false"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, "at least 1"),
        ("/similarity", {"inputs": "a"}, "keys with values"),
        ("/tokenize", {"inputs": [[5]]}, "a text"),
        ("/rerank", {"query": "a", "texts": []}, "at least 1"),
    ],
)
def test_a_wrong_value_is_422(server: TestClient, path: str, body: dict[str, Any], said: str) -> None:
    assert said in refusal(server.post(path, json=body), 422)


def test_an_unknown_prompt_is_refused(server: TestClient) -> None:
    assert "quary" in refusal(server.post("/embed", json={"inputs": "a", "prompt_name": "quary"}), 400)


def test_similarity_is_a_list_of_cosines(server: TestClient, served_embedder: Embedder) -> None:
    body = {"inputs": {"source_sentence": SHORT[0], "sentences": SHORT[1:]}}
    one, *others = served_embedder.encode(SHORT)
    assert close(server.post("/similarity", json=body).json(), np.stack(others) @ one)
    body["parameters"] = {"prompt_name": "query", "truncate": True, "truncation_direction": "right"}
    one, *others = served_embedder.encode(SHORT, prompt_name="query")
    assert close(server.post("/similarity", json=body).json(), np.stack(others) @ one)


def test_tokens_have_ids_texts_and_places(server: TestClient, served_embedder: Embedder) -> None:
    text = "the mole digs"
    (found,) = server.post("/tokenize", json={"inputs": text}).json()
    assert [token["id"] for token in found] == served_embedder.rows([text])[0][0]
    assert [token["text"] for token in found] == ["[CLS]", "the", "mole", "digs", "[SEP]"]
    assert [token["special"] for token in found] == [True, False, False, False, True]
    assert [(token["start"], token["stop"]) for token in found[:3]] == [(None, None), (0, 3), (4, 8)]
    (bare,) = server.post("/tokenize", json={"inputs": [text], "add_special_tokens": False}).json()
    assert bare == found[1:-1]
    (asked,) = server.post("/tokenize", json={"inputs": [text], "prompt_name": "query"}).json()
    assert [token["id"] for token in asked] == served_embedder.rows([text], role="query")[0][0]


@pytest.mark.parametrize("prompt", ["mole: ", 'the mole "{}" digs'])
def test_a_prompt_stands_where_the_model_puts_it(
    server: TestClient, served_embedder: Embedder, prompt: str
) -> None:
    (found,) = server.post("/tokenize", json={"inputs": ["owl"], "prompt": prompt}).json()
    expected, _ = served_embedder.rows(["owl"], prompt=prompt)
    assert [token["id"] for token in found] == expected[0]


def test_a_prompt_with_two_places_is_refused(server: TestClient) -> None:
    reply = server.post("/tokenize", json={"inputs": "owl", "prompt": "{} and {}"})
    assert "more than once" in refusal(reply, 400)


def test_info_says_what_is_served(server: TestClient, served_embedder: Embedder) -> None:
    info = server.get("/info").json()
    assert (info["model_id"], info["max_input_length"]) == ("tiny", served_embedder.max_length)
    assert (info["dimensions"], info["prompts"]) == ([8, 16], served_embedder.prompts)
    assert info["space"] == served_embedder.space()
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}


@pytest.mark.parametrize("path", ["/embed_all", "/embed_sparse", "/predict", "/decode"])
def test_what_is_not_served_is_refused_by_name(server: TestClient, path: str) -> None:
    assert path in refusal(server.post(path, json={"inputs": "a"}), 404)


def logistic(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-value))


def test_texts_are_reranked(open_server: Any, tiny_reranker: Reranker) -> None:
    ranking = open_server(reranker=tiny_reranker)
    expected = tiny_reranker.scored(SHORT[0], SHORT, activation="identity").array
    order = np.argsort(-expected, kind="stable").tolist()
    asked = {"query": SHORT[0], "texts": SHORT}
    found = ranking.post("/rerank", json=asked).json()
    assert [rank["index"] for rank in found] == order
    assert close([rank["score"] for rank in found], logistic(expected[order]))
    assert "text" not in found[0]
    full = ranking.post("/rerank", json=asked | {"return_text": True, "raw_scores": True})
    assert [rank["text"] for rank in full.json()] == [SHORT[n] for n in order]
    assert close([rank["score"] for rank in full.json()], expected[order])
    assert int(full.headers["x-compute-tokens"]) == tiny_reranker.scored(SHORT[0], SHORT).tokens


def test_a_pair_that_is_too_long_is_cut_only_on_demand(open_server: Any, tiny_reranker: Reranker) -> None:
    ranking = open_server(reranker=tiny_reranker)
    asked = {"query": "mole", "texts": ["owl", LONG]}
    assert "text 1" in refusal(ranking.post("/rerank", json=asked), 413)
    cut = ranking.post("/rerank", json=asked | {"truncate": True})
    assert len(cut.json()) == 2
    expected = tiny_reranker.scored("mole", ["owl", LONG]).cut.sum()
    assert (cut.headers["x-truncated-texts"], cut.headers["x-truncated-tokens"]) == ("1", str(expected))


@pytest.mark.parametrize("query", ["", "a {} mole", "'{} {}'.format(mole, owl)"])
def test_a_query_may_be_any_text(open_server: Any, tiny_reranker: Reranker, query: str) -> None:
    ranking = open_server(reranker=tiny_reranker)
    found = ranking.post("/rerank", json={"query": query, "texts": SHORT}).json()
    expected = tiny_reranker.scores(query, SHORT, activation="sigmoid")
    assert close([rank["score"] for rank in found], np.sort(expected)[::-1])


def test_what_was_cut_is_counted(open_server: Any, tiny_reranker: Reranker) -> None:
    ranking = open_server(reranker=tiny_reranker)
    cut = ranking.post("/rerank", json={"query": "mole", "texts": ["owl", LONG], "truncate": True})
    told = ranking.get("/metrics").text.splitlines()
    assert "moembed_truncated_texts_total 1.0" in told
    assert f"moembed_truncated_tokens_total {float(cut.headers['x-truncated-tokens'])}" in told


class Slow:
    """A reranker that takes its time; ``ended`` says how it came to an end."""

    max_length = 32

    def __init__(self, scores: float = 0.5) -> None:
        self.score, self.begun, self.ended = scores, threading.Event(), ""

    def scored(self, query: str, texts: Any, *, activation: Any = None, progress: Any = None) -> Scores:
        self.begun.set()
        for _ in range(0 if query == "quick" else 400):
            time.sleep(0.01)
            try:
                if progress is not None:
                    progress(1)
            except Exception:
                self.ended = "stopped"
                raise
        self.ended = "done"
        return Scores(np.full(len(texts), self.score, np.float32), np.zeros(len(texts), np.int64), 1)


def test_nobody_is_scored_for_who_has_left(served_embedder: Embedder) -> None:
    slow, body = Slow(), b'{"query": "q", "texts": ["a"]}'
    head = b"POST /rerank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    with live(served_embedder, reranker=slow) as url:
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(place, timeout=10) as connection:
            connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            assert slow.begun.wait(10)
        end = time.monotonic() + 10
        while not slow.ended:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert slow.ended == "stopped"


def test_tokens_do_not_wait_for_scores(served_embedder: Embedder) -> None:
    slow = Slow()
    with live(served_embedder, reranker=slow) as url, ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(httpx2.post, f"{url}/rerank", json=QUESTION, timeout=20) for _ in range(2)]
        assert slow.begun.wait(10)
        assert httpx2.post(f"{url}/tokenize", json={"inputs": "owl"}, timeout=20).status_code == 200
        assert not slow.ended
        assert [future.result().status_code for future in asked] == [200, 200]


def test_a_score_that_is_no_number_is_an_error(open_server: Any) -> None:
    ranking = open_server(reranker=Slow(float("nan")))
    reply = ranking.post("/rerank", json={"query": "quick", "texts": ["a", "b"]})
    assert "text 0" in refusal(reply, 500, "Backend")


def test_too_many_that_wait_are_429(open_server: Any, tiny_reranker: Reranker) -> None:
    ranking = open_server(reranker=tiny_reranker, rerank_requests=1)
    ranking.app.state.serving.reranking = 1
    reply = ranking.post("/rerank", json={"query": "q", "texts": ["a"]})
    refusal(reply, 429, "Overloaded")
    assert reply.headers["retry-after"] == "1"
    ranking.app.state.serving.reranking = 0
    assert ranking.post("/rerank", json={"query": "q", "texts": ["a"]}).status_code == 200


def test_without_a_reranker_it_says_so(server: TestClient) -> None:
    said = refusal(server.post("/rerank", json={"query": "q", "texts": ["a"]}), 424, "Backend")
    assert "--reranker" in said
