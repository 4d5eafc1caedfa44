"""Paths with a slash at the end are answered where they are, and HEAD wherever GET is."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from starlette.testclient import TestClient

from moembed.serve.routes.page import page_files

POSTS: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "a mole", "input_type": "search_query"},
    "/embed": {"inputs": "a mole"},
    "/similarity": {"inputs": {"source_sentence": "a mole", "sentences": ["an owl"]}},
    "/tokenize": {"inputs": "a mole"},
    "/rerank": {"query": "a mole", "texts": ["an owl", "moles"]},
    "/v1/rerank": {"query": "a mole", "documents": ["an owl", "moles"]},
    "/inspect": {"text": "a mole"},
    "/space": {},
}
GETS = ("/v1/models", "/v1/models/tiny", "/info", "/health", "/ready", "/inspect", "/openapi.json", "/docs")


@pytest.fixture(scope="module")
def client(open_server: Any, tiny_reranker: Any) -> TestClient:
    made: TestClient = open_server(reranker=tiny_reranker)
    made.follow_redirects = False
    return made


@pytest.mark.parametrize("path", POSTS)
def test_a_slash_at_the_end_changes_nothing(client: TestClient, path: str) -> None:
    asked = {"json": POSTS[path], "headers": {"x-request-id": "same"}}
    plain, slashed = (client.post(place, **asked) for place in (path, f"{path}/"))
    assert plain.status_code == slashed.status_code == 200
    assert slashed.json() == plain.json()


@pytest.mark.parametrize("path", GETS)
def test_get_takes_a_slash_and_head_has_the_same_headers(client: TestClient, path: str) -> None:
    got, slashed, head = client.get(path), client.get(f"{path}/"), client.head(path)
    assert (got.status_code, slashed.status_code, head.status_code) == (200, 200, 200)
    assert got.content == slashed.content
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.headers["content-length"] == got.headers["content-length"]


def test_errors_keep_the_form_of_their_route(client: TestClient) -> None:
    assert set(client.post("/embed/", json={}).json()) == {"error", "error_type"}
    assert "error" in client.post("/v1/embeddings/", json={}).json()
    assert client.get("/nowhere/").status_code == client.head("/nowhere").status_code == 404
    assert client.head("/v1/embeddings").status_code == 405


def test_what_needs_no_key_needs_none_with_a_slash_and_the_rest_does(open_server: Any) -> None:
    locked = open_server(api_keys=("k",))
    locked.follow_redirects = False
    assert locked.get("/health/").status_code == locked.head("/health").status_code == 200
    assert locked.get("/info/").status_code == locked.head("/info").status_code == 401
    assert locked.post("/embed/", json=POSTS["/embed"]).status_code == 401


@pytest.mark.parametrize("path", ["/embed", "/moembed/embed"])
@pytest.mark.parametrize("root", ["/moembed", "/moembed/"])
def test_another_path_in_front_changes_nothing(open_server: Any, root: str, path: str) -> None:
    """Whether or not the proxy takes it away: TEI's errors and statuses, and what needs no key."""
    proxied = open_server(root_path=root, api_keys=("k",))
    key = {"authorization": "Bearer k"}
    assert proxied.post(path, json=POSTS["/embed"], headers=key).status_code == 200
    refused = proxied.post(path, json={"inputs": "mole " * 60}, headers=key)
    assert (refused.status_code, set(refused.json())) == (413, {"error", "error_type"})
    assert set(proxied.post(path, json=POSTS["/embed"]).json()) == {"error", "error_type"}
    assert proxied.get(f"{path.removesuffix('embed')}health").status_code == 200


def test_the_page_keeps_its_slash_also_under_another_path(open_server: Any) -> None:
    proxied = open_server(root_path="/moembed")
    proxied.follow_redirects = False
    for path in ("/", "/moembed/"):
        assert proxied.get(path).content == proxied.get("/").content == page_files()["index.html"].content
    assert proxied.head("/moembed/").status_code == 200
    assert proxied.post("/moembed/embed/", json=POSTS["/embed"]).status_code == 200
