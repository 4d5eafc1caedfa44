"""OpenAI's routes: the vectors are those of the model itself, in every form; errors are OpenAI's objects."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from conftest import TEXTS
from moembed.embedder import Embedder
from moembed.encoding import View

SHORT = [text for text in TEXTS if len(text) < 40]


def ask(server: TestClient, **body: Any) -> Any:
    return server.post("/v1/embeddings", json={"model": "tiny"} | body)


def vectors(reply: Any) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    return np.array([row["embedding"] for row in reply.json()["data"]], dtype=np.float32)


def refusal(reply: Any, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["x-request-id"]
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and np.allclose(found, expected, atol=1e-5)


def test_vectors_are_those_of_the_model(server: TestClient, served_embedder: Embedder) -> None:
    assert close(vectors(ask(server, input=SHORT)), served_embedder.encode(SHORT))
    assert close(vectors(ask(server, input=SHORT[0])), served_embedder.encode(SHORT[:1]))


def test_base64_is_the_full_width_in_little_endian(server: TestClient) -> None:
    plain = vectors(ask(server, input=SHORT))
    rows = ask(server, input=SHORT, encoding_format="base64").json()["data"]
    found = np.stack([np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4") for row in rows])
    assert close(found, plain)
    assert [row["index"] for row in rows] == list(range(len(SHORT)))
    assert close(vectors(ask(server, input=SHORT, encoding_format=None)), plain)


def test_token_ids_are_texts(server: TestClient, served_embedder: Embedder) -> None:
    rows, _ = served_embedder.rows(SHORT)
    expected = served_embedder.encode(SHORT)
    assert close(vectors(ask(server, input=rows)), expected)
    assert close(vectors(ask(server, input=rows[0])), expected[:1])


def test_usage_counts_every_token(server: TestClient, served_embedder: Embedder) -> None:
    rows, _ = served_embedder.rows(SHORT)
    reply = ask(server, input=SHORT).json()
    tokens = sum(map(len, rows))
    assert reply["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert (reply["object"], reply["model"], reply["data"][0]["object"]) == ("list", "tiny", "embedding")
    assert (reply["truncated_texts"], reply["truncated_tokens"]) == (0, 0)
    assert reply["space"] == served_embedder.space()


@pytest.mark.parametrize(
    ("input_type", "role"),
    [("search_query", "query"), ("query", "query"), ("search_document", "document"), ("passage", "document")],
)
def test_input_type_is_a_role(
    server: TestClient, served_embedder: Embedder, input_type: str, role: str
) -> None:
    found = vectors(ask(server, input=SHORT, input_type=input_type))
    assert close(found, served_embedder.vectors(SHORT, role=role).array)
    assert close(found, vectors(ask(server, input=SHORT, prompt_name=role)))
    assert not close(found, served_embedder.encode(SHORT))


def test_trained_sizes_are_cut_and_normalised(server: TestClient, served_embedder: Embedder) -> None:
    found = vectors(ask(server, input=SHORT, dimensions=8))
    assert close(found, served_embedder.encode(SHORT, dim=8))
    assert ask(server, input=SHORT, dimensions=8).json()["space"] == served_embedder.space(view=View(dim=8))
    assert close(vectors(ask(server, input=SHORT, dimensions=16)), served_embedder.encode(SHORT))


def test_other_sizes_only_on_demand(open_server: Any, server: TestClient, served_embedder: Embedder) -> None:
    error = refusal(ask(server, input=SHORT, dimensions=5), 400)
    assert error["param"] == "dimensions"
    assert "8, 16" in error["message"]
    assert refusal(ask(server, input=SHORT, dimensions=17), 400)["param"] == "dimensions"
    any_size = open_server(allow_any_dim=True)
    assert close(vectors(ask(any_size, input=SHORT, dimensions=5)), served_embedder.encode(SHORT, dim=5))
    assert refusal(ask(any_size, input=SHORT, dimensions=17), 400)["param"] == "dimensions"


LONG = "mole " * 60


def test_a_long_text_is_refused_cut_or_chunked(server: TestClient, served_embedder: Embedder) -> None:
    error = refusal(ask(server, input=["owl", LONG]), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    assert error["message"].endswith(
        "shorten it, or send truncate: truncate to drop what is too much, or truncate: chunk for the mean of "
        "its pieces"
    )
    cut = ask(server, input=["owl", LONG], truncate="truncate").json()
    assert (cut["truncated_texts"], cut["truncated_tokens"]) == (1, 62 - 32)
    assert cut["usage"]["total_tokens"] == 3 + 32
    whole = ask(server, input=["owl", LONG], truncate="chunk").json()
    assert (whole["truncated_texts"], whole["truncated_tokens"]) == (0, 0)


def test_a_server_can_cut_by_default(open_server: Any, served_embedder: Embedder) -> None:
    cutting = open_server(truncate="truncate")
    with pytest.warns(UserWarning, match="cut"):
        expected = served_embedder.encode([LONG])
    assert close(vectors(ask(cutting, input=LONG)), expected)
    refusal(ask(cutting, input=LONG, truncate="error"), 400)


@pytest.mark.parametrize(
    ("body", "status", "param", "said"),
    [
        ({"input": "a", "model": "gpt"}, 404, "model", "'tiny'"),
        ({"input": []}, 400, "input", "empty list"),
        ({}, 400, "input", "missing"),
        ({"input": ["a", 1]}, 400, "input", "mixture"),
        ({"input": [[]]}, 400, "input", "empty"),
        ({"input": [-1]}, 400, "input", "at least 0"),
        ({"input": [10**6]}, 400, "input", "token id"),
        ({"input": {"a": 1}}, 400, "input", "a text"),
        ({"input": None}, 400, "input", "a text"),
        ({"input": "a", "dimensions": -4}, 400, "dimensions", "at least 1"),
        ({"input": "a", "dimensions": "8"}, 400, "dimensions", "whole number"),
        ({"input": "a", "dimensions": True}, 400, "dimensions", "whole number"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format", "float"),
        ({"input": "a", "prompt_name": "quary"}, 400, "prompt_name", "did you mean 'query'"),
        ({"input": "a", "input_type": "image"}, 400, "input_type", "search_query"),
        ({"input": "a", "input_type": "query", "prompt_name": "query"}, 400, "prompt_name", "one of"),
        ({"input": [5, 6], "input_type": "query"}, 400, "input", "token ids"),
        ({"input": "a", "truncate": "maybe"}, 400, "truncate", "chunk"),
        ({"input": "a", "trunkate": "error"}, 400, "trunkate", "did you mean 'truncate'"),
    ],
)
def test_a_wrong_field_is_named(
    server: TestClient, body: dict[str, Any], status: int, param: str, said: str
) -> None:
    error = refusal(server.post("/v1/embeddings", json=body), status)
    assert error["param"] == param
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


def test_models_are_listed_and_found(server: TestClient) -> None:
    listed = server.get("/v1/models").json()
    (card,) = listed["data"]
    assert (listed["object"], card["id"], card["object"]) == ("list", "tiny", "model")
    assert card["dimensions"] == [8, 16]
    assert server.get("/v1/models/tiny").json() == card
    assert server.get("/v1/models/runs/tiny").json() == card
    assert refusal(server.get("/v1/models/other"), 404)["code"] == "model_not_found"


def test_the_model_may_be_named_as_the_server_was_started(server: TestClient) -> None:
    assert ask(server, input="a", model="runs/tiny").status_code == 200


def test_more_texts_than_allowed_are_refused(open_server: Any) -> None:
    few = open_server(max_texts=2)
    assert ask(few, input=["a", "b"]).status_code == 200
    error = refusal(ask(few, input=["a", "b", "c"]), 413)
    assert "at most 2" in error["message"]


def test_more_tokens_than_allowed_are_refused(open_server: Any) -> None:
    few = open_server(request_tokens=8)
    assert ask(few, input=["owl", "mole"]).status_code == 200
    error = refusal(ask(few, input=["owl", "mole", "worms"]), 413)
    assert "at most 8" in error["message"]
