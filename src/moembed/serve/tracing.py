"""Traces of OpenTelemetry, where they are asked for: a span of every request, and in it its steps.

``tokenise`` is from text to tokens, ``queue`` until the first of its rows is computed, and ``batch`` every
batch that holds rows of it. No span has a word of a text. Without ``start_tracing`` nothing is imported and
nothing is recorded.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moembed import __version__
from moembed.serve.records import record_of, route_of

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
log = logging.getLogger("moembed.serve")

OnBatch = Callable[[float, float, int, int], None]  # start and end (time.monotonic), tokens, rows

_tracer: Any = None
_provider: Any = None


def wanted() -> bool:
    """Whether the environment names a place to send traces to."""
    return any(os.environ.get(name) for name in ENDPOINTS)


def start_tracing(exporter: Any = None) -> bool:
    """Record spans from now on, in this process; in a forked one it must be called again.

    Sampling, the name of the service, headers and time limits are those of the ``OTEL_…`` variables.

    Args:
        exporter: where spans go, each at once; default: the address of the environment, in batches.

    Returns:
        False, with a line in the log, where OpenTelemetry is not installed.
    """
    global _tracer, _provider
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            processor: Any = BatchSpanProcessor(OTLPSpanExporter())
        else:
            processor = SimpleSpanProcessor(exporter)
    except ImportError:
        log.warning("traces are asked for and not recorded: pip install 'moembed[otel]'")
        return False
    name = os.environ.get("OTEL_SERVICE_NAME", "moembed")
    _provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    _provider.add_span_processor(processor)
    _tracer = _provider.get_tracer("moembed.serve", __version__)
    return True


def stop_tracing() -> None:
    """Send what is recorded, and record no more."""
    global _tracer, _provider
    if _provider is not None:
        _provider.shutdown()
    _tracer = _provider = None


@contextmanager
def span(name: str, **attributes: int | str) -> Iterator[None]:
    """A step of the request at hand."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name, attributes=attributes):
        yield


def batch_recorder() -> OnBatch | None:
    """Whoever computes calls it with each batch of the request at hand; None: nobody asks."""
    if _tracer is None:
        return None
    from opentelemetry import context

    here, tracer, submitted = context.get_current(), _tracer, time.monotonic()
    waiting = True

    def record(start: float, end: float, tokens: int, rows: int) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            tracer.start_span("queue", here, start_time=_nanoseconds(submitted)).end(_nanoseconds(start))
        attributes = {"moembed.batch.tokens": tokens, "moembed.batch.rows": rows}
        made = tracer.start_span("batch", here, attributes=attributes, start_time=_nanoseconds(start))
        made.end(_nanoseconds(end))

    return record


class TraceRequests:
    """A span for every request; a ``traceparent`` header of the caller is continued."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _tracer is None or scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, Status, StatusCode

        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        status = 500

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        method = scope["method"]
        with _tracer.start_as_current_span(method, extract(headers), kind=SpanKind.SERVER) as made:
            try:
                await self.app(scope, receive, answered)
            finally:
                record, route = record_of(scope), route_of(scope)
                made.update_name(f"{method} {route}")
                made.set_attributes(
                    {
                        "http.request.method": method,
                        "http.route": route,
                        "http.response.status_code": status,
                        "moembed.request.id": record.id,
                        "moembed.texts": record.texts,
                        "moembed.tokens": record.tokens,
                        "moembed.truncated_tokens": record.truncated_tokens,
                    }
                )
                if status >= 500:
                    made.set_status(Status(StatusCode.ERROR))


def _nanoseconds(moment: float) -> int:
    """A moment of ``time.monotonic`` on the clock that spans have."""
    return time.time_ns() - round((time.monotonic() - moment) * 1e9)
