"""Spans of a request and its steps, with no word of its texts; and nothing at all where nobody asks."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from conftest import MakeModel
from live_server import live
from moembed.serve import tracing


@pytest.fixture
def spans() -> Iterator[Any]:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    assert tracing.start_tracing(exporter)
    yield exporter
    tracing.stop_tracing()


def ask(url: str, path: str, body: dict[str, Any], **headers: str) -> int:
    content = json.dumps(body).encode()
    request = urllib.request.Request(url + path, content, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_request_and_its_steps(make_model: MakeModel, spans: Any) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with live(make_model(num_layers=1)) as url:
        body = {"input": ["secret owls", "secret moles"]}
        assert ask(url, "/v1/embeddings", body, traceparent=f"00-{trace}-{parent}-01") == 200
    by_name = {span.name: span for span in spans.get_finished_spans() if "health" not in span.name}
    assert set(by_name) == {"POST /v1/embeddings", "tokenise", "queue", "batch"}
    request = by_name["POST /v1/embeddings"]
    assert f"{request.parent.span_id:016x}" == parent
    for name, span in by_name.items():
        assert f"{span.context.trace_id:032x}" == trace
        assert span.start_time <= span.end_time
        if span is not request:
            assert span.parent.span_id == request.context.span_id, name
    slack = 2_000_000  # nanoseconds between two clocks
    assert by_name["tokenise"].end_time <= by_name["queue"].start_time + slack
    assert by_name["queue"].end_time <= by_name["batch"].start_time + slack
    assert by_name["batch"].end_time <= request.end_time + slack
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["moembed.texts"] == 2
    assert by_name["batch"].attributes["moembed.batch.rows"] == 2
    assert not any("secret" in span.to_json() for span in by_name.values())


def test_a_refused_request_has_a_span_too(make_model: MakeModel, spans: Any) -> None:
    with live(make_model(num_layers=1)) as url:
        assert ask(url, "/v1/embeddings", {"input": ["owl"], "dimensions": 7}) == 400
        assert ask(url, "/nowhere", {}) == 404
    found = [span for span in spans.get_finished_spans() if "health" not in span.name]
    statuses = {span.name: span.attributes["http.response.status_code"] for span in found}
    assert statuses == {"POST /v1/embeddings": 400, "POST unmatched": 404}


def test_nothing_is_recorded_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert not tracing.wanted()
    assert tracing.batch_recorder() is None
    with tracing.span("tokenise"):
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert tracing.wanted()
