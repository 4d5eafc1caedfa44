"""Whatever is sent: a 4xx with an error object, never a traceback, never a word of the inside."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from starlette.testclient import TestClient

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
