"""What /openapi.json promises, and that requests made of it are answered as it says."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from starlette.testclient import TestClient

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
import schemathesis.specs.openapi.checks as _checks  # noqa: E402

CHECKS = [
    schemathesis.checks.not_a_server_error,
    _checks.status_code_conformance,
    _checks.content_type_conformance,
    _checks.response_schema_conformance,
    _checks.negative_data_rejection,
]


def test_every_route_is_described(server: TestClient) -> None:
    """Every operation says what it takes and how it fails, with the right error object."""
    schema = server.get("/openapi.json").json()
    posts = {path: item["post"] for path, item in schema["paths"].items() if "post" in item}
    ours = {"/search", "/space", "/inspect", "/v1/rerank", "/v2/rerank"}
    assert set(posts) == {"/v1/embeddings", "/embed", "/similarity", "/tokenize", "/rerank"} | ours
    for path, operation in posts.items():
        body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert body.rpartition("/")[2] in schema["components"]["schemas"]
        assert {"200", "400", "401", "413", "415", "429", "500", "503"} <= set(operation["responses"])
        form = "TeiFailure" if operation["tags"] == ["TEI"] else "OpenAIFailure"
        failure = operation["responses"]["429"]["content"]["application/json"]["schema"]["$ref"]
        assert failure.endswith(form), path
    assert {"/health", "/ready", "/metrics", "/info", "/v1/models"} <= set(schema["paths"])


def test_every_reference_leads_somewhere(server: TestClient) -> None:
    schema = server.get("/openapi.json").json()

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    for reference in references(schema):
        here = schema
        for part in reference.removeprefix("#/").split("/"):
            here = here[part]


def test_the_page_for_people_says_the_same(server: TestClient) -> None:
    schema = server.get("/openapi.json").json()
    reply = server.get("/docs")
    assert reply.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in reply.headers["content-security-policy"]
    text = html.unescape(reply.text)
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            assert f"<code>{method.upper()} {path}</code>" in text
            assert operation["summary"] in text
    for kind in ("EmbeddingsBody", "SearchBody", "RerankBody", "RankBody"):
        for field in schema["components"]["schemas"][kind]["properties"]:
            assert f"<code>{field}</code>" in text
    assert "<td>a text or a list of texts or a list of whole numbers or" in text
    assert "a whole number, at least 1, at most 1000" in text
    assert not re.findall(r"(?:src|href)=.https?:|<script|style=", reply.text)


def cases(server: TestClient, per_kind: int = 3) -> Iterator[tuple[str, Any]]:
    """A test of every operation, with valid and with invalid requests; it sends ``per_kind`` of them."""
    schema = schemathesis.openapi.from_dict(server.get("/openapi.json").json())
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:
            if mode == schemathesis.GenerationMode.NEGATIVE and operation.method == "get":
                continue  # it takes nothing that could be wrong

            @settings(max_examples=per_kind, database=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                sent = case.as_transport_kwargs(base_url="http://testserver")
                content = sent.pop("data", None)
                content = {} if content is None else {"content": content}
                case.validate_response(server.request(**sent, **content), checks=CHECKS)

            yield f"{mode.value} {operation.label}", check


def test_requests_made_of_the_schema(server: TestClient) -> None:
    """No failure inside, no status or form that the schema does not know, nothing invalid is accepted."""
    names = []
    for name, check in cases(server):
        check()
        names.append(name)
    assert {"positive POST /v1/embeddings", "negative POST /v1/embeddings"} <= set(names)
