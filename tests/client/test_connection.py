"""What a server answers, and what becomes of it: a result, another try, or one sentence."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from moembed.client.connection import Connection, is_url
from moembed.client.model import Client
from moembed.types import UserError

INFO = {
    "model_id": "toy", "dimensions": [2, 4], "max_input_length": 8, "model_dtype": "float32", "prompts": {},
    "default_prompt": None, "max_client_batch_size": 3,
}  # fmt: skip
ZEROS = "AAAAAAAAAAAAAAAAAAAAAA=="  # four float32 numbers


@contextmanager
def scripted(
    *replies: tuple[int, Any, dict[str, str]] | str | None,
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives these replies one after the other, and what it was sent.

    None: it hangs up; "late": it does so when the test is over.
    """
    left, seen, over = list(replies), [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"null")
            seen.append({"path": self.path, "body": body, "key": self.headers.get("Authorization")})
            reply = left.pop(0)
            if reply == "late":
                over.wait(10)
            if reply is None or isinstance(reply, str):
                self.close_connection = True
                self.connection.close()
                return
            status, value, headers = reply
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *arguments: None  # type: ignore[method-assign]  # a client that went away
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def connect(url: str, retries: int = 2, timeout: float = 5.0) -> Connection:
    return Connection(url, None, timeout, retries, 2)


def test_a_busy_server_is_asked_again_after_the_time_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("moembed.client.connection.time.sleep", waits.append)
    with scripted((429, {}, {"Retry-After": "0.2"}), (503, {}, {}), (200, {"a": 1}, {})) as (url, seen):
        assert connect(url).ask("POST", "/x", {"b": "ü"}) == {"a": 1}
    assert waits[0] == 0.2
    assert 0.3 < waits[1] < 0.7  # where it names none, twice as long as after the try before
    assert [one["body"] for one in seen] == [{"b": "ü"}] * 3


def test_a_connection_that_breaks_is_tried_again() -> None:
    with scripted(None, (200, {"a": 1}, {})) as (url, seen):
        assert connect(url).ask("POST", "/x", {}) == {"a": 1}
    assert len(seen) == 2


def test_a_server_that_stays_busy_is_told_after_the_last_try() -> None:
    busy = (429, {"error": {"message": "the queue is full"}}, {"Retry-After": "0"})
    with (
        scripted(busy, busy, busy) as (url, seen),
        pytest.raises(UserError, match="429: the queue is full"),
    ):
        connect(url).ask("POST", "/x", {})
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, {"error": {"message": "dimensions 5 is wrong"}}, "400: dimensions 5 is wrong"),
        (422, {"error": "no such prompt", "error_type": "Validation"}, "422: no such prompt"),
        (404, {"detail": "Not Found"}, "404"),
        (401, {"error": {"message": "no key"}}, "MOEMBED_API_KEY"),
        (500, b"<html>broken</html>", "500: <html>broken</html>"),
        (200, b"<html>", "no moembed server"),
    ],
)
def test_a_mistake_is_not_tried_again_and_is_one_sentence(status: int, body: Any, said: str) -> None:
    with scripted((status, body, {})) as (url, seen), pytest.raises(UserError, match=said) as caught:
        connect(url).ask("POST", "/x", {})
    assert len(seen) == 1
    assert "\n" not in str(caught.value)


def test_a_server_that_is_too_slow_is_told() -> None:
    with scripted("late") as (url, _), pytest.raises(UserError, match=r"within 0\.05 seconds"):
        connect(url, timeout=0.05).ask("POST", "/x", {})


def test_nobody_at_home() -> None:
    with pytest.raises(UserError, match=r"no server answers at http://127.0.0.1:1 .*moembed serve MODEL"):
        Client("http://127.0.0.1:1")


def test_half_of_a_surrogate_pair_never_leaves() -> None:
    with scripted() as (url, seen), pytest.raises(UserError, match="surrogate"):
        connect(url).ask("POST", "/x", {"text": "\ud800"})
    assert seen == []


@pytest.mark.parametrize("url", ["localhost:8000", "", "ftp://host", "http://", "http://host:port"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UserError):
        Client(url)


def test_the_key_comes_from_the_environment_or_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEMBED_API_KEY", "one")
    with scripted((200, INFO, {}), (200, INFO, {})) as (url, seen):
        Client(url).close()
        Client(f"{url}/v1/", api_key="two").close()
    assert [one["key"] for one in seen] == ["Bearer one", "Bearer two"]


def test_the_line_end_of_a_file_is_no_part_of_a_key() -> None:
    with scripted((200, INFO, {})) as (url, seen):
        Client(url, api_key=" one\r\n").close()
    assert seen[0]["key"] == "Bearer one"


@pytest.mark.parametrize("key", ["schl\u00fcssel", "two words", "two\nlines", "a\x00b"])
def test_a_key_that_no_request_can_bring_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(UserError, match="a bearer key cannot have") as caught:
        Connection("http://127.0.0.1:1", key, 5.0, 0, 1)
    assert key not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), {1}, b"a"])
def test_what_is_no_json_never_leaves(value: Any) -> None:
    with scripted() as (url, seen), pytest.raises(UserError, match="/x is asked for cannot be written"):
        connect(url).ask("POST", "/x", {"where": value})
    assert seen == []


def test_where_the_server_has_moved_is_told() -> None:
    moved: tuple[int, Any, dict[str, str]] = (308, {}, {"Location": "https://there.example/info"})
    with (
        scripted(moved) as (url, _),
        pytest.raises(UserError, match=r"points to https://there\.example/info"),
    ):
        Client(url)


@pytest.mark.parametrize("info", [{}, [], {"model_id": "bert", "version": "1.9"}])
def test_another_kind_of_server_is_told(info: Any) -> None:
    with scripted((200, info, {})) as (url, _), pytest.raises(UserError, match="no moembed server"):
        Client(url)


def test_another_model_is_told() -> None:
    with scripted((200, INFO, {})) as (url, _), pytest.raises(UserError, match="serves the model toy, not x"):
        Client(url, model="x")


@pytest.mark.parametrize(
    ("data", "space", "said"),
    [
        ([{"index": 0, "embedding": ZEROS}], "other", "serves another model than when"),
        ([], "s", "left out the vector"),
        ([{"index": 1, "embedding": ZEROS}], "s", "cannot be read"),
        ([{"index": 0, "embedding": "AAAAAA=="}], "s", "cannot be read"),
        ([{"index": 0, "embedding": "AADAfwAAwH8AAMB/AADAfw=="}], "s", "NaN"),
        ([{"index": 0, "embedding": [0, 0, 0, 0]}], "s", "cannot be read"),
        (None, "s", "cannot be read"),
    ],
)
def test_a_wrong_reply_never_becomes_a_vector(data: Any, space: str, said: str) -> None:
    reply = {"data": data, "space": space, "truncated_texts": 0}
    with (
        scripted((200, INFO, {}), (200, {"space": "s"}, {}), (200, reply, {})) as (url, _),
        Client(url) as client,
        pytest.raises(UserError, match=said),
    ):
        client.vectors(["a"])


def test_requests_hold_no_more_than_they_may() -> None:
    with scripted((200, INFO, {})) as (url, _), Client(url, batch_characters=10) as client:
        batches = [
            list(rows) for rows in client._batches(["aaaa", "aaaa", "aaaa", "", "", "", "a" * 20, "a"])
        ]
    assert batches == [[0, 1], [2, 3, 4], [5], [6], [7]]


def test_addresses_are_told_from_names() -> None:
    assert [is_url(name) for name in ("http://h", "https://h:1/v1", "owner/http", "runs/demo")] == [
        True, True, False, False,
    ]  # fmt: skip
