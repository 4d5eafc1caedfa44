"""No request takes more than its share, and all not too much: bytes of bodies, time to send and to answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moembed.serve.errors import RequestError
from moembed.serve.records import header

_WITHOUT_BODY = frozenset(("GET", "HEAD", "OPTIONS"))


class ClientGoneError(Exception):
    """The client went away while it sent its request."""


@dataclass(slots=True)
class _Body:
    """What has come of a body; ``size`` also counts what is handed on, until it is answered."""

    size: int = 0
    chunks: list[bytes] = field(default_factory=list)


class LimitRequests:
    """Take the whole body in before anything reads it, and end the work for clients that went away.

    Args:
        max_body_bytes: more is 413, before it is read where the header says so.
        bodies_bytes: of all bodies that have come, whole or in part, and are not answered: the one whose next
            bytes are more is 429. What a header announces does not count before it comes.
        body_seconds: a body that takes longer to come is 408.
        request_seconds: an answer that takes longer is 504, and its work is cancelled.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        bodies_bytes: int,
        body_seconds: float,
        request_seconds: float,
    ) -> None:
        self.app, self.max_body_bytes, self.bodies_bytes = app, max_body_bytes, bodies_bytes
        self.body_seconds, self.request_seconds = body_seconds, request_seconds
        self.held = 0  # bytes of all bodies at hand

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _WITHOUT_BODY:
            await self.app(scope, receive, send)
            return
        body = _Body()
        try:
            content = await self._whole(scope, receive, body)
            await self._answer(scope, _replay(content, receive), receive, send)
        except ClientGoneError:
            return
        finally:
            self.held -= body.size

    async def _whole(self, scope: Scope, receive: Receive, body: _Body) -> bytes:
        """All of a body that comes in time."""
        try:
            await asyncio.wait_for(self._read(scope, receive, body), self.body_seconds)
        except asyncio.TimeoutError:
            raise RequestError(
                408, f"the body did not arrive within {self.body_seconds:g} seconds: send it faster, or less"
            ) from None
        content = b"".join(body.chunks)
        body.chunks.clear()
        return content

    async def _read(self, scope: Scope, receive: Receive, body: _Body) -> None:
        declared = header(scope, b"content-length")
        if declared and declared.isdecimal() and int(declared[:20]) > self.max_body_bytes:
            raise self._too_large()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk = message.get("body", b"")
            if body.size + len(chunk) > self.max_body_bytes:
                raise self._too_large()
            if self.held + len(chunk) > self.bodies_bytes:
                raise RequestError(
                    429,
                    "the bodies of other requests take all the room: send this one again later",
                    retry_after=1,
                )
            self.held += len(chunk)
            body.size += len(chunk)
            body.chunks.append(chunk)
            if not message.get("more_body", False):
                return

    def _too_large(self) -> RequestError:
        return RequestError(
            413, f"the body is larger than {self.max_body_bytes} bytes: send the texts in several requests"
        )

    async def _answer(self, scope: Scope, replay: Receive, receive: Receive, send: Send) -> None:
        """Run the application until it has answered, the client is gone, or the time is over."""
        work = asyncio.ensure_future(self.app(scope, replay, send))
        gone = asyncio.ensure_future(_wait_until_gone(receive))
        try:
            done, _ = await asyncio.wait(
                (work, gone), timeout=self.request_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if work in done:
                work.result()
            elif not done:
                raise RequestError(
                    504, f"no answer within {self.request_seconds:g} seconds: try again, with fewer texts"
                )
        finally:
            await _cancel(gone)
            await _cancel(work)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then whatever comes."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return pending.pop() if pending else await receive()

    return next_message


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Future[None]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # it is looked at, so that asyncio does not complain of it
