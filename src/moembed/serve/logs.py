"""One line of JSON for each request and for whatever else happens; never a text, a vector or a key.

An exception is logged by its kind and the places it went through, not by its message, which may quote a text.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, TextIO

import orjson
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moembed.serve.errors import RequestError, error_body, form_of
from moembed.serve.records import RequestRecord, header, path_of, route_of, start_record

if TYPE_CHECKING:  # its library decides at import whether processes count together
    from moembed.serve.metrics import Metrics

log = logging.getLogger("moembed.serve")
_GONE = 499  # the client went away before it was answered (nginx's number; logged, never sent)
_FRAMES = 12
_ASKED_ALL_DAY = ("/health", "/ready", "/metrics")  # by machines; logged at the level debug


class JsonLines(logging.Formatter):
    """``{"time", "level", "event", …}``; the fields of ``extra={"fields": {…}}`` stand beside these."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1]:
            line |= where(record.exc_info[1])
        return orjson.dumps(line, default=str).decode("utf-8")


def where(error: BaseException) -> dict[str, Any]:
    """The kind of an exception and its frames, the innermost last; not its message."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return {
        "error": type(error).__name__,
        "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }


def configure_logs(level: str = "info", stream: TextIO | None = None) -> None:
    """Lines of JSON on ``stream`` (default: stderr) for the server and for uvicorn."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("moembed.serve", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = ([handler] if name != "uvicorn.error" else []), False
        logger.setLevel(level.upper())
    logging.getLogger("uvicorn.error").propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # our own line says more, and no path that was sent


class LogRequests:
    """Outermost: gives every request an id, counts and logs it, and answers for what goes wrong inside."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = start_record(scope)
        answer = _Answer(record, send)
        self.metrics.working.inc()
        try:
            await self.app(scope, receive, answer.send)
        except RequestError as error:
            await self._apologise(scope, receive, answer, error)
        except asyncio.CancelledError:  # uvicorn cancels what is at work when `drain_seconds` are over
            if answer.status:
                raise
            message = "the server is shutting down: send the request again"
            refused = RequestError(503, message, code="shutting_down", retry_after=1.0)
            await self._apologise(scope, receive, answer, refused)
        except Exception as error:
            fields = {"request_id": record.id, "route": route_of(scope), **where(error)}
            log.error("a request failed", extra={"fields": fields})
            message = f"the server failed; its log has the reason under the request id {record.id}"
            await self._apologise(scope, receive, answer, RequestError(500, message))
        finally:
            self.metrics.working.dec()
            self._tell(scope, record, answer.status or _GONE)

    async def _apologise(self, scope: Scope, receive: Receive, answer: _Answer, error: RequestError) -> None:
        if answer.status:  # half of an answer is out: cut it off, so that nobody takes it for whole
            raise error
        await error_reply(scope, error)(scope, receive, answer.send)

    def _tell(self, scope: Scope, record: RequestRecord, status: int) -> None:
        route, seconds = route_of(scope), record.seconds
        size = header(scope, b"content-length") or ""
        self.metrics.answered(route, status, seconds, record.texts, record.tokens)
        fields = {
            "request_id": record.id,
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
            "texts": record.texts,
            "tokens": record.tokens,
            "truncated_tokens": record.truncated_tokens,
            "client": record.client,
            "bytes": int(size) if size.isdecimal() else None,
        }
        level = (
            logging.DEBUG if route in _ASKED_ALL_DAY else logging.WARNING if status >= 500 else logging.INFO
        )
        log.log(level, "request", extra={"fields": fields})


def error_reply(scope: Scope, error: RequestError) -> Response:
    """The answer for a failure, in the form that clients of this path know."""
    status, body = error_body(error, form_of(path_of(scope)))
    return Response(body, status, media_type="application/json", headers=error.headers())


class _Answer:
    """Passes an answer on, with the request's id, and remembers its status."""

    def __init__(self, record: RequestRecord, send: Send) -> None:
        self.record, self.pass_on = record, send
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            ours = [
                (b"x-request-id", self.record.id.encode("ascii")),
                (b"x-content-type-options", b"nosniff"),
                (b"server-timing", b"total;dur=%.2f" % (1000 * self.record.seconds)),
            ]
            message = {**message, "headers": [*message.get("headers", ()), *ours]}
        await self.pass_on(message)
