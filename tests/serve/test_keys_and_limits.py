"""Who may ask, how much, and for how long."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from moembed.serve.auth import Keys, RequireKey
from moembed.serve.errors import RequestError
from moembed.serve.limits import LimitRequests

BODY = {"input": "a mole"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def locked(open_server: Any, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text("# of the second team\nfrom-file\n\n")
    return open_server(api_keys=("first", "second"), api_key_file=file)


@pytest.mark.parametrize("key", ["first", "from-file"])
def test_every_key_opens(locked: TestClient, key: str) -> None:
    assert locked.post("/v1/embeddings", json=BODY, headers=bearer(key)).status_code == 200
    assert (
        locked.post("/v1/embeddings", json=BODY, headers={"authorization": f"bearer {key}"}).status_code
        == 200
    )


@pytest.mark.parametrize(
    "headers", [{}, bearer(""), bearer("firs"), bearer("firstx"), bearer("# of the second team"),
                {"authorization": "first"}, {"authorization": "Basic first"}],
)  # fmt: skip
def test_anything_else_is_401_in_the_form_of_the_route(locked: TestClient, headers: dict[str, str]) -> None:
    reply = locked.post("/v1/embeddings", json=BODY, headers=headers)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert "first" not in reply.text
    tei = locked.post("/embed", json={"inputs": "a"}, headers=headers)
    assert tei.status_code == 401
    assert set(tei.json()) == {"error", "error_type"}


@pytest.mark.parametrize("path", ["/v1/models", "/info", "/metrics", "/inspect", "/nowhere", "/page/../info"])
def test_what_needs_a_key(locked: TestClient, path: str) -> None:
    assert locked.get(path).status_code == 401


def test_health_needs_none(locked: TestClient) -> None:
    assert locked.get("/health").status_code == 200
    assert locked.get("/ready").status_code == 200
    assert locked.get("/docs").status_code == 200
    assert locked.get("/openapi.json").status_code == 200


def test_metrics_can_be_opened(open_server: Any) -> None:
    assert open_server(api_keys=("k",), open_metrics=True).get("/metrics").status_code == 200


def test_all_keys_are_compared_whatever_the_first_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import moembed.serve.auth as auth

    compared: list[bytes] = []
    plain = auth.hmac.compare_digest
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda a, b: compared.append(a) or plain(a, b))
    keys = Keys(["a", "b", "c"])
    assert keys.match("a")
    assert not keys.match("d")
    assert len(compared) == 6
    assert {len(digest) for digest in compared} == {32}


def test_a_large_body_is_413_before_it_is_read(open_server: Any) -> None:
    small = open_server(max_body_bytes=1024)
    assert small.post("/v1/embeddings", json=BODY).status_code == 200
    reply = small.post("/v1/embeddings", json={"input": "a" * 1100})
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large"

    def chunks() -> Any:
        for _ in range(20):
            yield b"x" * 100

    assert (
        small.post(
            "/v1/embeddings", content=chunks(), headers={"content-type": "application/json"}
        ).status_code
        == 413
    )


def test_origins_are_none_unless_given(server: TestClient, open_server: Any) -> None:
    asked = {"origin": "https://page.example", "access-control-request-method": "POST"}
    assert server.options("/v1/embeddings", headers=asked).status_code == 405
    plain = server.post("/v1/embeddings", json=BODY, headers={"origin": "https://page.example"})
    assert "access-control-allow-origin" not in plain.headers
    shared = open_server(cors_origins=("https://page.example",), api_keys=("k",))
    allowed = shared.options("/v1/embeddings", headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    headers = "authorization, content-type, x-stainless-lang, x-stainless-os"  # of OpenAI's in a browser
    theirs = shared.options("/v1/embeddings", headers=asked | {"access-control-request-headers": headers})
    assert (theirs.status_code, theirs.headers["access-control-allow-headers"]) == (200, headers)
    other = shared.options("/v1/embeddings", headers=asked | {"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


# ---- the middleware alone: what a test client cannot do ---------------------------------------------------


def scope(**values: Any) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": "/", "headers": []} | values


def limited(app: Any, **limits: float) -> LimitRequests:
    defaults = {"max_body_bytes": 100, "bodies_bytes": 1000, "body_seconds": 5.0, "request_seconds": 5.0}
    return LimitRequests(app, **(defaults | limits))  # type: ignore[arg-type]


async def nothing(message: Any) -> None: ...


def test_a_body_that_does_not_come_is_408() -> None:
    async def receive() -> Any:
        await asyncio.sleep(60)

    async def app(*_: Any) -> None:
        raise AssertionError("never reached")

    with pytest.raises(RequestError, match="did not arrive") as raised:
        asyncio.run(limited(app, body_seconds=0.02)(scope(), receive, nothing))
    assert raised.value.status == 408


def test_an_answer_that_does_not_come_is_504_and_its_work_is_cancelled() -> None:
    ended: list[str] = []
    assert _run_slow(ended, gone=False) == 504
    assert ended == ["cancelled"]


def test_a_client_that_goes_away_cancels_its_work() -> None:
    ended: list[str] = []
    assert _run_slow(ended, gone=True) is None
    assert ended == ["cancelled"]


def _run_slow(ended: list[str], gone: bool) -> int | None:
    messages = [{"type": "http.request", "body": b"{}", "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.sleep(0.01 if gone else 60)
        return {"type": "http.disconnect"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"{}"
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    try:
        asyncio.run(limited(app, request_seconds=5 if gone else 0.02)(scope(), receive, nothing))
    except RequestError as error:
        return error.status
    return None


def test_a_body_in_pieces_is_whole_for_the_application() -> None:
    pieces = [b'{"a":', b" 1", b"}"]
    read: list[Any] = []

    async def receive() -> Any:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
        return await asyncio.sleep(60)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        read.append((json.loads(message["body"]), message["more_body"]))

    asyncio.run(limited(app)(scope(), receive, nothing))
    assert read == [({"a": 1}, False)]


def test_lifespans_and_heads_pass() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    for middleware in (limited(app), RequireKey(app, Keys(["k"]))):
        asyncio.run(middleware({"type": "lifespan"}, nothing, nothing))  # type: ignore[arg-type]
    assert seen == ["lifespan", "lifespan"]


def test_all_bodies_at_hand_have_a_limit() -> None:
    """Half a body and a whole one that is not answered count; what is answered, or gone, does not."""
    proceed = asyncio.Event()
    answered: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        answered.append(len((await receive())["body"]))
        await proceed.wait()

    def client(*pieces: bytes, after: asyncio.Event | None = None, gone: bool = False) -> Any:
        left = list(pieces)
        last = after

        async def receive() -> Any:
            nonlocal last
            if left:
                return {"type": "http.request", "body": left.pop(0), "more_body": bool(left or last)}
            waited, last = last or asyncio.Event(), None
            await waited.wait()
            if gone:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": b"", "more_body": False}

        return receive

    async def life() -> None:
        middleware = limited(app, bodies_bytes=150)
        rest, leave = asyncio.Event(), asyncio.Event()

        def ask(receive: Any) -> asyncio.Task[None]:
            return asyncio.ensure_future(middleware(scope(), receive, nothing))

        whole, half = ask(client(b"x" * 60)), ask(client(b"x" * 60, after=rest))
        gone = ask(client(b"x" * 20, after=leave, gone=True))
        announced = scope(headers=[(b"content-length", b"90")])
        await asyncio.sleep(0)
        while middleware.held < 140:
            await asyncio.sleep(0)
        with pytest.raises(RequestError, match="bodies of other requests") as raised:
            await middleware(announced, client(b"x" * 5, b"x" * 6), nothing)
        assert raised.value.status == 429
        assert raised.value.headers()["retry-after"] == "1"
        assert middleware.held == 140  # the refused one takes nothing
        leave.set()
        await gone
        assert middleware.held == 120
        small = ask(client(b"x" * 30))
        rest.set()
        while len(answered) < 3:
            await asyncio.sleep(0)
        proceed.set()
        await asyncio.gather(whole, half, small)
        assert middleware.held == 0

    asyncio.run(asyncio.wait_for(life(), 10))
    assert sorted(answered) == [30, 60, 60]


def test_the_limit_of_all_bodies_is_a_setting(open_server: Any) -> None:
    small = open_server(max_body_bytes=1024, bodies_bytes=1024)
    (limit,) = [made for made in small.app.user_middleware if made.cls is LimitRequests]
    assert limit.kwargs["bodies_bytes"] == 1024
    assert small.post("/v1/embeddings", json={"input": "a" * 900}).status_code == 200
