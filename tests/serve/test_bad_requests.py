"""Whatever is sent: a 4xx with an error object, never a traceback, never a word of the inside."""

from __future__ import annotations

import gzip
import json
import logging
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from moembed.serve import bodies

JSON = {"content-type": "application/json"}


def check(reply: Any, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert "Traceback" not in reply.text
    assert ".py" not in reply.text
    error = reply.json()["error"]
    assert error["message"]
    assert len(error["message"]) <= 501
    return error


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"a"',
        b'{"input": NaN}',
        b'{"input": "a", "dimensions": Infinity}',
        b'{"input": "a", "dimensions": 1e400}',
        b'{"input": "a", "dimensions": 99999999999999999999999999}',
        b'{"input": [1.5]}',
        b'{"input": [1e3]}',
        b'{"input": "\xff\xfe"}',
        b'{"input": "\xed\xa0\x80"}',
        b'{"input": "\\ud800"}',
        b'{"input": "\\udc00 a"}',
        b'{"input": "a\x00b"}',
        b'{"input": "a\nb"}',
        b'{"input": "a"} trailing',
        b"\x00" * 100,
        b"[" * 100_000,
        b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"a": ' * 5000 + b"1" + b"}" * 5000,
        b'{"input": ' + b"[" * 200 + b"]" * 200 + b"}",
    ],
)
def test_what_is_no_json_or_no_request(server: TestClient, content: bytes) -> None:
    check(server.post("/v1/embeddings", content=content, headers=JSON), 400)


@pytest.mark.parametrize(
    ("media", "status"),
    [
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
    ],
)
def test_a_page_elsewhere_must_say_json(server: TestClient, media: str, status: int) -> None:
    """Browsers send text/plain across origins unasked; application/json they do not."""
    headers = {"content-type": media} if media else {}
    reply = server.post("/v1/embeddings", content=b'{"input": "a"}', headers=headers)
    assert reply.status_code == status


def test_a_packed_body_is_named(server: TestClient) -> None:
    content = gzip.compress(b'{"input": "a"}')
    reply = server.post("/v1/embeddings", content=content, headers=JSON | {"content-encoding": "gzip"})
    assert "packed with gzip" in check(reply, 415)["message"]
    plain = server.post("/v1/embeddings", json={"input": "a"}, headers={"content-encoding": "identity"})
    assert plain.status_code == 200


@pytest.mark.parametrize(
    "text", ["\x00", "a\x00b", "\x1b[31m", "\u202e", "\ufeff", "\U0010ffff", " \n\t ", "", "🦔" * 5]
)
def test_odd_texts_are_texts(server: TestClient, served_embedder: Any, text: str) -> None:
    reply = server.post("/v1/embeddings", content=json.dumps({"input": text}), headers=JSON)
    assert reply.status_code == 200
    expected = served_embedder.encode([text])[0].tolist()
    assert reply.json()["data"][0]["embedding"] == pytest.approx(expected, abs=1e-5)


def test_a_text_of_ten_megabytes(server: TestClient, open_server: Any) -> None:
    body = json.dumps({"input": "mole " * (2 << 20)})
    check(server.post("/v1/embeddings", content=body, headers=JSON), 413)
    larger = open_server(max_body_bytes=64 << 20)
    error = check(
        larger.post("/v1/embeddings", content=json.dumps({"input": "mole " * 50_000}), headers=JSON), 400
    )
    assert error["code"] == "context_length_exceeded"


def test_a_declared_length_is_not_believed_blindly(server: TestClient) -> None:
    for declared in ("99999999999999999999999999999999", "-5", "abc"):
        headers = JSON | {"content-length": declared}
        reply = server.post("/v1/embeddings", content=b'{"input": "a"}', headers=headers)
        assert reply.status_code in (200, 413)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/embeddings", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v1/models/%00", 404),
        ("POST", "/search", 415),
        ("GET", "/page/..%2f..%2fapp.py", 404),
    ],
)
def test_paths_and_methods(server: TestClient, method: str, path: str, status: int) -> None:
    reply = server.request(method, path)
    check(reply, status)
    if status == 405:
        assert reply.headers["allow"]


def test_html_comes_back_as_json(server: TestClient) -> None:
    script = "<script>alert(1)</script>"
    reply = server.post("/v1/embeddings", json={"input": "a", "model": script})
    assert check(reply, 404)["param"] == "model"
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_a_failure_inside_says_nothing_of_the_inside(
    server: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = server.app.state.model  # type: ignore[attr-defined]

    async def fail(*_: Any, **__: Any) -> None:
        raise ValueError("the secret text of a user")

    monkeypatch.setattr(model, "embed", fail)
    with caplog.at_level(logging.INFO, "moembed.serve"):
        reply = server.post("/v1/embeddings", json={"input": "a"}, headers={"x-request-id": "r-7"})
    error = check(reply, 500)
    assert "secret" not in reply.text
    assert error["type"] == "server_error"
    assert "r-7" in error["message"]
    assert reply.headers["x-request-id"] == "r-7"
    assert "secret" not in str([record.__dict__ for record in caplog.records])
    monkeypatch.undo()
    assert server.post("/v1/embeddings", json={"input": "a"}).status_code == 200


def test_one_bad_request_among_good_ones_fails_alone(server: TestClient) -> None:
    good, bad = {"input": ["mole"]}, {"input": [[1, 10**6]]}
    replies = [server.post("/v1/embeddings", json=body).status_code for body in (good, bad, good)]
    assert replies == [200, 400, 200]


@pytest.mark.parametrize("given", ["a b", "x" * 65, "<script>", "a\tb"])
def test_only_plain_request_ids_are_taken_over(server: TestClient, given: str) -> None:
    found = server.get("/health", headers={"x-request-id": given}).headers["x-request-id"]
    assert found != given
    assert found.isalnum()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/embeddings", {"input": "a"} | {f"k{number}": 1 for number in range(20_000)}, 400),
        ("/v1/embeddings", {"input": [[0]] * 100_000}, 413),
        ("/v1/embeddings", {"input": [0] * 600_000}, 413),
        ("/v1/embeddings", {"input": [[0] * 600_000]}, 413),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["a"] * 100_000}}, 413),
        ("/rerank", {"query": "a", "texts": ["a"] * 100_000}, 413),
    ],
)
def test_what_is_far_too_much_is_not_looked_at_entry_by_entry(
    server: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], status: int
) -> None:
    """That would hold all other requests up, for seconds or minutes."""
    kinds = (bodies.EmbeddingsBody, bodies.SimilarityBody, bodies.RerankBody)
    for kind in kinds:
        monkeypatch.setattr(kind, "model_validate", lambda values: pytest.fail("it was looked at"))
    reply = server.post(path, json=body)
    assert reply.status_code == status
    assert "Traceback" not in reply.text


def test_of_many_wrong_texts_one_is_named() -> None:
    with pytest.raises(ValidationError) as raised:
        bodies.RerankBody.model_validate({"query": "a", "texts": [1] * 2000})
    assert raised.value.error_count() == 1


@pytest.mark.parametrize("path", ["/v1/embeddings", "/tokenize"])
def test_a_prompt_counts_once_for_each_text(server: TestClient, path: str) -> None:
    """A body of 30 kB that asks for 40 MB to be read."""
    name = "inputs" if path == "/tokenize" else "input"
    reply = server.post(path, json={name: ["a"] * 2000, "prompt": "x" * 20_000})
    assert reply.status_code == 413
    assert "in front of each" in reply.text
    longer = server.post(path, json={name: "a", "prompt": "x" * 20_001})
    assert longer.status_code in (400, 422)
    assert "at most 20000 characters" in longer.text


def test_the_tokens_of_a_text_are_not_shown_without_end(open_server: Any) -> None:
    small = open_server(request_tokens=50)
    assert small.post("/tokenize", json={"inputs": "mole " * 10}).status_code == 200
    assert small.post("/tokenize", json={"inputs": "mole " * 60}).status_code == 413


def test_a_text_that_would_take_gigabytes_is_not_tokenized(
    server: TestClient, served_embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(served_embedder.tokenizer), "whole_rows", lambda *_, **__: pytest.fail("it was"))
    for path, name in (("/v1/embeddings", "input"), ("/tokenize", "inputs"), ("/inspect", "text")):
        reply = server.post(path, json={name: "mole " * 300_000})
        assert reply.status_code == 413, path
        assert "send it in pieces" in reply.text
