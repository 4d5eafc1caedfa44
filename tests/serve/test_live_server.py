"""uvicorn on a socket: slow clients, clients that vanish, invalid HTTP, and an orderly end."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse
from typing import Any

import httpx2
import pytest

from moembed.embedder import Embedder
from moembed.serve.app import create_app
from moembed.serve.metrics import Metrics
from moembed.serve.served import ServedModel
from moembed.serve.server import address_of, listen, uvicorn_server
from moembed.serve.settings import ServeSettings
from moembed.types import UserError

POST = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
TIMES = {"header_seconds": 0.4, "body_seconds": 0.4, "drain_seconds": 5}


class Live:
    """A server in a thread, on a port of its own."""

    def __init__(self, embedder: Embedder, **values: Any) -> None:
        settings = ServeSettings(model="tiny", port=0, **(TIMES | values))
        metrics = Metrics()
        self.model = ServedModel("tiny", embedder, observer=metrics)
        self.listener = listen(settings)
        self.url, self.port = address_of(self.listener), self.listener.getsockname()[1]
        self.server = uvicorn_server(create_app(settings, self.model, metrics=metrics), settings)
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True
        )
        self.thread.start()
        end = time.monotonic() + 20
        while not self.model.ready:
            assert time.monotonic() < end
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(15)
        assert not self.thread.is_alive()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


@pytest.fixture(scope="module")
def live(served_embedder: Embedder) -> Iterator[Live]:
    found = Live(served_embedder)
    yield found
    found.stop()


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Everything until the server closes, and the status."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    return int(data.split()[1]) if data else 0, data.partition(b"\r\n\r\n")[2]


def test_it_answers(live: Live) -> None:
    reply = httpx2.post(f"{live.url}/v1/embeddings", json={"input": "a mole"}, timeout=10)
    assert reply.status_code == 200
    assert len(reply.json()["data"][0]["embedding"]) == 16
    assert "server" not in reply.headers


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/v1/models", "/page/app.js"])
def test_the_answer_to_head_has_no_body(live: Live, path: str) -> None:
    with live.connect() as connection:
        connection.sendall(f"HEAD {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
        assert answer(connection) == (200, b"")


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/embeddings HT", b"GET / HTTP/1.1\r\nhost: a\r\nx: ", b"\r\n"]
)
def test_a_head_that_does_not_end_is_cut_off(live: Live, sent: bytes) -> None:
    with live.connect() as connection:
        connection.sendall(sent)
        start = time.monotonic()
        status, body = answer(connection)
        assert time.monotonic() - start < 5
    assert status == 408
    assert json.loads(body)["error"]["code"] == "request_timeout"


def test_replies_are_not_held_back_by_the_kernel(live: Live) -> None:
    """asyncio switches Nagle's algorithm off for accepted sockets of this protocol alone."""
    assert live.listener.proto == socket.IPPROTO_TCP


def test_a_head_that_drips_is_cut_off(live: Live) -> None:
    with live.connect() as connection:
        start = time.monotonic()
        with suppress(ConnectionError):  # a broken pipe, or a reset
            for byte in b"GET /health HTTP/1.1\r\nx: " + b"a" * 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - start < 10  # all of it would take 20 seconds


def test_a_body_that_drips_is_408(live: Live) -> None:
    head = (
        b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 50\r\n"
    )
    with live.connect() as connection:
        connection.sendall(head + b"connection: close\r\n\r\n{")
        status, body = answer(connection)
    assert status == 408
    assert "did not arrive" in json.loads(body)["error"]["message"]


def test_a_head_that_is_too_large(live: Live) -> None:
    with live.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nx: " + b"a" * 70_000)
        status, body = answer(connection)
    assert status == 431
    assert "64 KiB" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    "sent",
    [b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n"],
)
def test_what_is_no_http(live: Live, sent: bytes) -> None:
    with live.connect() as connection:
        connection.sendall(sent)
        status, body = answer(connection)
    assert status == 400
    assert json.loads(body)["error"]["message"]


def test_a_connection_serves_many_requests_and_idles(live: Live) -> None:
    """The time limit of a head does not end a connection that waits between two requests."""
    with httpx2.Client(base_url=live.url, timeout=10) as client:
        for pause in (0.0, 0.0, 0.6):
            assert client.get("/health").status_code == 200
            time.sleep(pause)
        with live.connect() as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
            assert b"200 OK" in connection.recv(4096)
            time.sleep(0.6)  # longer than a head may take
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            assert answer(connection)[0] == 200


@pytest.mark.parametrize("pause", [0.0, 0.1])
def test_who_would_rather_speak_http2_is_answered_in_http1(live: Live, pause: float) -> None:
    """Java's client sends this with every first request, and the body as ever."""
    wish = b"connection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\nUpgrade: h2c\r\n"
    body = b'{"input": "upgrade: h2c\\r\\nupgrade: x"}'
    with live.connect() as connection:
        for _ in range(2):  # the connection is kept
            connection.sendall(POST + wish + b"content-length: %d\r\n\r\n" % len(body))
            time.sleep(pause)
            connection.sendall(body)
            reply = HTTPResponse(connection)  # reads on to its end: head and body may come apart
            reply.begin()
            assert (reply.version, reply.status) == (11, 200)
            assert json.loads(reply.read())["object"] == "list"
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert answer(connection)[0] == 200


def test_a_body_that_is_refused_early_is_answered(live: Live) -> None:
    """The head says it is too large: 413 comes before the body has been read."""
    with live.connect() as connection:
        connection.sendall(POST + b"content-length: 99999999\r\n\r\n")
        assert b" 413 " in connection.recv(65536)


def test_the_end_answers_what_was_taken(served_embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model waits until three requests are at work and the server has been told to end."""
    live = Live(served_embedder)
    proceed = threading.Event()
    embed = served_embedder.embed
    monkeypatch.setattr(served_embedder, "embed", lambda *a, **k: proceed.wait(20) and embed(*a, **k))
    replies: list[int] = []

    def ask() -> None:
        reply = httpx2.post(f"{live.url}/v1/embeddings", json={"input": ["a", "b"]}, timeout=30)
        replies.append(reply.status_code)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    end = time.monotonic() + 20
    while len(live.server.server_state.tasks) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    live.server.should_exit = True
    threading.Timer(0.3, proceed.set).start()
    live.stop()
    for asker in askers:
        asker.join(20)
    assert replies == [200, 200, 200]
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{live.url}/health", timeout=2)


def test_who_is_not_answered_when_the_end_has_waited_is_told_so(
    served_embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model never answers; one request is at work, and of another half the body has come."""
    live = Live(served_embedder, drain_seconds=0, body_seconds=20)
    proceed = threading.Event()
    embed = served_embedder.embed
    monkeypatch.setattr(served_embedder, "embed", lambda *a, **k: proceed.wait(20) and embed(*a, **k))
    with live.connect() as whole, live.connect() as half:
        whole.sendall(POST + b'content-length: 14\r\n\r\n{"input": "a"}')
        half.sendall(POST + b'content-length: 14\r\n\r\n{"input')
        end = time.monotonic() + 20
        while len(live.server.server_state.tasks) < 2 or not live.model._active:
            assert time.monotonic() < end
            time.sleep(0.01)
        live.server.should_exit = True
        for connection in (whole, half):
            status, body = answer(connection)
            assert (status, json.loads(body)["error"]["code"]) == (503, "shutting_down")
    proceed.set()
    live.stop()


def test_a_taken_port_is_a_sentence(live: Live) -> None:
    with pytest.raises(UserError, match="cannot listen on 127"):
        listen(ServeSettings(model="tiny", port=live.port))
    with pytest.raises(UserError, match="--host"):
        listen(ServeSettings(model="tiny", host="203.0.113.1", port=0))
