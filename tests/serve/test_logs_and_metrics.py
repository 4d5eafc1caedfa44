"""What operators see: counts with bounded labels, lines of JSON, and never a text."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from moembed.serve.logs import JsonLines, configure_logs
from moembed.serve.metrics import Metrics


def samples(text: str) -> dict[str, float]:
    """Every sample by its name and labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def read(server: TestClient) -> dict[str, float]:
    reply = server.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    return samples(reply.text)


def settled(server: TestClient) -> dict[str, float]:
    """A batch is counted just after its requests are answered: wait until nothing changes."""
    name = "moembed_batch_tokens_sum{}"
    last, found = -1.0, read(server)
    while found[name] != last:
        last = found[name]
        time.sleep(0.1)
        found = read(server)
    return found


def test_requests_texts_and_tokens_are_counted(open_server: Any, served_embedder: Any) -> None:
    server = open_server()
    texts = ["a mole", "an owl hunts"]
    rows, _ = served_embedder.rows(texts)
    before = settled(server)
    server.post("/v1/embeddings", json={"input": texts})
    server.post("/v1/embeddings", json={"input": []})
    server.post("/v1/embeddings", json={"input": "mole " * 60, "truncate": "truncate"})
    tokens = sum(map(len, rows)) + 32
    found = settled(server)
    assert found["moembed_requests_total{route=/v1/embeddings,status=200}"] == 2
    assert found["moembed_requests_total{route=/v1/embeddings,status=400}"] == 1
    assert found["moembed_request_seconds_count{route=/v1/embeddings}"] == 3
    assert found["moembed_texts_total{}"] - before["moembed_texts_total{}"] == 3
    assert found["moembed_tokens_total{}"] - before["moembed_tokens_total{}"] == tokens
    assert found["moembed_batch_tokens_sum{}"] - before["moembed_batch_tokens_sum{}"] == tokens
    assert (found["moembed_truncated_texts_total{}"], found["moembed_truncated_tokens_total{}"]) == (1, 30)
    assert (found["moembed_queue_tokens{}"], found["moembed_ready{}"]) == (0, 1)
    loads = [value for name, value in found.items() if name.startswith("moembed_expert_tokens_total")]
    earlier = [value for name, value in before.items() if name.startswith("moembed_expert_tokens_total")]
    assert sum(loads) - sum(earlier) == tokens * 2 * 2  # two layers, two experts of each token
    assert any("layer=1" in name for name in found)


def test_labels_do_not_grow_with_what_clients_send(open_server: Any) -> None:
    server = open_server()
    read(server)
    count = len(read(server))
    for n in range(5):
        server.get(f"/v1/models/other-{n}")
        server.get(f"/nowhere/{n}")
        server.request(f"METHOD{n}", "/v1/embeddings")
    found = read(server)
    assert not any(str(n) in name for name in found for n in ("other-", "nowhere", "METHOD"))
    for n in range(5, 50):
        server.get(f"/v1/models/other-{n}")
        server.get(f"/nowhere/{n}")
        server.request(f"METHOD{n}", "/v1/embeddings")
    assert set(read(server)) == set(found)
    assert len(found) > count


def test_a_request_is_one_line_without_its_text(server: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("moembed.serve").propagate = True
    with caplog.at_level(logging.INFO, "moembed.serve"):
        server.post("/v1/embeddings", json={"input": ["secret", "words"]}, headers={"x-request-id": "abc"})
        server.get("/v1/models/secret-name")
    lines = [
        json.loads(JsonLines().format(record)) for record in caplog.records if record.name == "moembed.serve"
    ]
    first, second = lines
    assert (first["event"], first["route"], first["status"]) == ("request", "/v1/embeddings", 200)
    assert (first["request_id"], first["texts"], first["method"]) == ("abc", 2, "POST")
    assert first["tokens"] > 2
    assert (first["bytes"], second["bytes"]) == (len('{"input":["secret","words"]}'), None)
    assert (second["route"], second["status"]) == ("/v1/models/{name:path}", 404)
    assert "secret" not in json.dumps(lines)


def test_an_exception_is_logged_without_its_message() -> None:
    stream = io.StringIO()
    names = ("moembed.serve", "uvicorn", "uvicorn.error")
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in names}
    try:
        configure_logs("info", stream)
        try:
            raise ValueError("secret text")
        except ValueError:
            logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=sys.exc_info())
            logging.getLogger("uvicorn.error").debug("not shown")
    finally:
        for name, (handlers, propagate) in before.items():
            logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert (found["level"], found["error"]) == ("error", "ValueError")
    assert "test_logs_and_metrics.py" in found["frames"][-1]
    assert "secret" not in line


def test_experts_without_tokens_are_no_samples() -> None:
    metrics = Metrics()
    metrics.expert_load({3: [5, 0, 7]})
    metrics.expert_load({3: [1, 0, 0]})
    found = samples(metrics.exposition().decode())
    loads = {name: value for name, value in found.items() if "expert_tokens_total" in name}
    assert loads == {
        "moembed_expert_tokens_total{expert=0,layer=3}": 6,
        "moembed_expert_tokens_total{expert=2,layer=3}": 7,
    }
