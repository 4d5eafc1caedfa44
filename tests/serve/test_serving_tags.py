"""Models that choose experts by tags give, when they are served, what they give in the same process."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import moembed.cli.options as options
from conftest import MakeModel
from live_server import live
from moembed.client.model import Client
from moembed.embedder import Embedder
from moembed.encoding import View
from moembed.search.embed import EmbedConfig, embed_file
from moembed.serve.batching.batcher import Batcher, Request
from moembed.serve.batching.limits import BatchLimits
from moembed.serve.errors import RequestError
from moembed.serve.searching import open_index
from moembed.serve.served import Embedded, ServedModel
from moembed.token_experts import token_experts
from moembed.types import UserError
from tagged_models import tagged_model

LANGUAGES = ["de", "en", "fr"]
ONE_LANE = BatchLimits(batch_seconds=1e9, lanes=1)


@pytest.fixture(scope="module")
def languages(make_model: MakeModel) -> Embedder:
    return tagged_model(make_model().parts(), tags=LANGUAGES)


@pytest.fixture(scope="module")
def roles(make_model: MakeModel) -> Embedder:
    return tagged_model(make_model().parts(), tags=["query", "document"])


@pytest.fixture(scope="module")
def default(make_model: MakeModel) -> Embedder:
    return tagged_model(make_model().parts(), tags=LANGUAGES, default_tag="en")


@pytest.fixture(scope="module")
def url(languages: Embedder) -> Iterator[str]:
    with live(languages) as address:
        yield address


@pytest.fixture(scope="module")
def roles_url(roles: Embedder) -> Iterator[str]:
    with live(roles) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, batch_texts=3) as made:
        yield made


def served(model: Embedder, requests: list[tuple[Any, dict[str, Any]]]) -> list[Embedded]:
    """Answers to requests that come at once."""

    async def life() -> list[Embedded]:
        made = ServedModel("mole", model, ONE_LANE)
        await made.start()
        try:
            asked = (made.embed(inputs, **given) for inputs, given in requests)
            return await asyncio.wait_for(asyncio.gather(*asked), 20)
        finally:
            await made.close()

    return asyncio.run(life())


def near(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max() <= 1e-6)


# ---- behind the batcher ------------------------------------------------------------------------------------


def test_tags_together_are_those_alone(languages: Embedder, texts: list[str]) -> None:
    each = [LANGUAGES[i % 3] for i in range(len(texts))]
    views = View(), View(layers=2), View(dim=5)
    asked: list[dict[str, Any]] = [{"tag": tag, "view": view} for tag in [*LANGUAGES, each] for view in views]
    together = served(languages, [(texts, given) for given in asked])
    for given, found in zip(asked, together, strict=True):
        expected = languages.vectors(texts, **given)
        (alone,) = served(languages, [(texts, given)])
        assert near(found.array, expected.array)
        assert near(alone.array, expected.array)
        assert found.space == alone.space == expected.space
    assert not near(together[0].array, together[3].array)


def test_texts_of_several_tags_share_a_batch(
    languages: Embedder, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queued, batches = 0, []
    submit, embed = Batcher.submit, Embedder.embed

    def counted(self: Batcher, request: Request) -> Any:
        nonlocal queued
        future = submit(self, request)
        queued += 1
        return future

    def watched(self: Embedder, *arguments: Any, **given: Any) -> np.ndarray:
        if queued > 1:  # the first one is of the warm-up
            end = time.monotonic() + 10
            while queued < 7 and time.monotonic() < end:
                time.sleep(0.001)
            batches.append(set(given["tags"]))
        return embed(self, *arguments, **given)

    monkeypatch.setattr(Batcher, "submit", counted)
    monkeypatch.setattr(Embedder, "embed", watched)
    answers = served(languages, [([text], {"tag": tag}) for tag in LANGUAGES for text in texts[:2]])
    monkeypatch.undo()
    assert any(len(tags) > 1 for tags in batches)
    expected = [languages.encode(text, tag=tag) for tag in LANGUAGES for text in texts[:2]]
    assert near(np.concatenate([found.array for found in answers]), np.stack(expected))


def test_roles_are_tags(roles: Embedder, texts: list[str]) -> None:
    asked: list[dict[str, Any]] = [
        {"role": "query"},
        {"role": "document"},
        {"prompt": "query: "},
        {"role": "query", "tag": "document"},
    ]
    for given, found in zip(asked, served(roles, [(texts, given) for given in asked]), strict=True):
        expected = roles.vectors(texts, **given)
        assert near(found.array, expected.array)
        assert found.space == expected.space


def test_the_pieces_of_a_text_have_its_tag(languages: Embedder) -> None:
    long = "the mole digs tunnels under the meadow " * 12
    given = {"truncate": "chunk", "tag": ["de", "fr", "en"]}
    (found,) = served(languages, [([long, "an owl", long], given)])
    for place, (text, tag) in enumerate(zip([long, "an owl", long], ["de", "fr", "en"], strict=True)):
        (alone,) = served(languages, [([text], given | {"tag": tag})])
        assert near(found.array[[place]], alone.array)
    assert not near(found.array[0], found.array[2])


def test_token_ids_have_tags(languages: Embedder, roles: Embedder, texts: list[str]) -> None:
    rows, _ = languages.rows(texts)
    (found,) = served(languages, [(rows, {"tag": "fr"})])
    assert near(found.array, languages.encode(texts, tag="fr"))
    (found,) = served(roles, [(rows, {"tag": "query"})])
    assert near(found.array, roles.encode(texts, tag="query"))


def test_a_function_finds_the_tags_of_texts_and_not_of_token_ids(
    make_model: MakeModel, texts: list[str]
) -> None:
    model = tagged_model(make_model().parts(), tags=LANGUAGES)
    model.tag = lambda some: ["de" if "owl" in text else "fr" for text in some]
    (found,) = served(model, [(texts, {})])
    assert near(found.array, model.encode(texts))
    with pytest.raises(RequestError, match="send tag"):
        served(model, [(model.rows(texts)[0], {})])


@pytest.mark.parametrize(
    ("inputs", "tag", "said"),
    [
        (["an owl"], None, r"known: de, en, fr.*pass tag"),
        (["an owl"], "sw", r"no experts for the tag 'sw' \(known: de, en, fr\)"),
        ([], "sw", "no experts for the tag 'sw'"),
        ([], ["de", "sw"], "no experts for the tag 'sw'"),
        (["an owl"], ["de", "en"], "tag gives 2 tags for 1 texts"),
        ([[2, 3]], None, "pass tag"),
    ],
)
def test_nothing_is_guessed(languages: Embedder, inputs: Any, tag: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        served(languages, [(inputs, {"tag": tag})])
    assert (caught.value.status, caught.value.param) == (400, "tag")


def test_a_model_without_tags_refuses_one(moe_model: Embedder) -> None:
    for inputs in (["an owl"], []):
        with pytest.raises(RequestError, match="does not choose experts by tags"):
            served(moe_model, [(inputs, {"tag": "de"})])


# ---- over HTTP ---------------------------------------------------------------------------------------------


def test_a_client_gets_what_the_model_gives(client: Client, languages: Embedder, texts: list[str]) -> None:
    each = [LANGUAGES[i % 3] for i in range(len(texts))]
    for tag in ("de", each):
        ours, theirs = (
            client.vectors(texts, role="query", tag=tag),
            languages.vectors(texts, role="query", tag=tag),
        )
        assert near(ours.array, theirs.array)
        assert ours.space == theirs.space == client.space(role="query", tag=tag)
        assert near(client.encode(texts, tag=tag, dim=5), languages.encode(texts, tag=tag, dim=5))
        assert near(client.encode_query(texts, tag=tag), languages.encode_query(texts, tag=tag))
    assert (client.info.tags, client.info.default_tag) == (("de", "en", "fr"), None)
    client.tag = "fr"
    assert near(client.encode_document(texts), languages.encode_document(texts, tag="fr"))


def test_roles_need_no_tag(roles_url: str, roles: Embedder, texts: list[str]) -> None:
    with Client(roles_url) as client:
        assert near(client.encode_query(texts), roles.encode_query(texts))
        assert near(client.encode_document(texts), roles.encode_document(texts))
        assert near(client.encode(texts, prompt_name="document"), roles.encode(texts, prompt_name="document"))
        assert client.space(role="query") == roles.space(role="query")
        ask = client._connection.ask
        for given in (
            {"input_type": "search_query"},
            {"prompt_name": "query"},
            {"prompt": "", "tag": "query"},
        ):
            reply = ask("POST", "/v1/embeddings", {"input": texts} | given)
            in_process: dict[str, Any] = given if "tag" in given else {"prompt_name": "query"}
            rows = np.array([row["embedding"] for row in reply["data"]], dtype=np.float32)
            assert near(rows, roles.encode(texts, **in_process))
        with pytest.raises(UserError, match=r"400.*known: document, query"):
            client.encode(texts)


def test_roles_need_no_words_in_front(make_model: MakeModel, texts: list[str]) -> None:
    model = tagged_model(
        make_model(prompts={"query": "", "document": ""}).parts(), tags=["query", "document"]
    )
    with live(model) as url, Client(url) as client:
        for role in ("query", "document"):
            expected = model.encode(texts, tag=role)
            reply = client._connection.ask("POST", "/embed", {"inputs": texts, "prompt_name": role})
            assert near(np.array(reply, dtype=np.float32), expected)
            assert near(client.encode(texts, prompt_name=role), expected)
            ours, theirs = client.vectors(texts, role=role), model.vectors(texts, role=role)
            assert near(ours.array, expected)
            assert ours.space == theirs.space


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda c: c.encode(["an owl"]), r"400.*known: de, en, fr"),
        (lambda c: c.encode(["an owl"], tag="sw"), r"no experts for the tag 'sw' \(known: de, en, fr\)"),
        (lambda c: c.encode(["an owl"], tag=["de", "en"]), "2 tags for 1 texts"),
        (lambda c: c.search("owl", tag="de"), "no index"),
        (lambda c: c._connection.ask("POST", "/embed", {"inputs": "owl", "tag": "sw"}), "400.*tag 'sw'"),
        (lambda c: c._connection.ask("POST", "/embed", {"inputs": "owl", "tag": 3}), "422.*tag"),
        (lambda c: c._connection.ask("POST", "/space", {"tag": "sw"}), "400.*tag 'sw'"),
        (lambda c: c._connection.ask("POST", "/inspect", {"text": "owl"}), "400.*pass tag"),
    ],
)
def test_mistakes_are_one_sentence(client: Client, call: Callable[[Client], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        call(client)


def test_other_routes_take_a_tag(client: Client, languages: Embedder, texts: list[str]) -> None:
    ask = client._connection.ask
    rows = np.array(ask("POST", "/embed", {"inputs": texts, "tag": "fr"}), dtype=np.float32)
    assert near(rows, languages.encode(texts, tag="fr"))
    inputs = {"source_sentence": texts[0], "sentences": texts[1:]}
    cosines = ask("POST", "/similarity", {"inputs": inputs, "parameters": {"tag": "fr"}})
    assert near(np.array(cosines, dtype=np.float32), rows[1:] @ rows[0])
    found = ask("POST", "/inspect", {"text": "the owl", "tag": "fr"})
    assert all(layer["experts"] == [[2]] * 4 for layer in found["layers"])
    facts = ask("GET", "/inspect")
    assert (facts["tags"], facts["default_tag"], facts["tags_are_roles"]) == (LANGUAGES, None, False)


def test_the_default_is_told_and_said(default: Embedder, texts: list[str]) -> None:
    with live(default) as url, Client(url) as client:
        assert client.info.default_tag == "en"
        with pytest.warns(UserWarning, match="the experts of 'en'"):
            ours = client.vectors(texts)
        assert near(ours.array, default.encode(texts, tag="en"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ours.space == client.space(tag="en")
            client.vectors(texts, tag="de")


def test_an_index_of_any_tag_is_searched_by_any(
    languages: Embedder, texts: list[str], tmp_path: Path
) -> None:
    source = tmp_path / "docs.jsonl"
    source.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts), encoding="utf-8")
    config = EmbedConfig(prompt=languages.role_prefix("document"))
    languages.tag = "de"
    try:
        embed_file(languages, source, tmp_path / "index", config)
    finally:
        languages.tag = None
    index = open_index(tmp_path / "index", languages)
    with live(languages, index.path) as url, Client(url) as client:
        for tag in ("de", "fr"):
            hits = client.search("an owl", k=3, tag=tag)
            expected = index.search(languages.encode_query(["an owl"], tag=tag), k=3)
            assert [hit.score for hit in hits] == pytest.approx(expected.score[0].tolist(), abs=1e-6)
        with pytest.raises(UserError, match=r"400.*pass tag"):
            client.search("an owl")


def test_a_command_sends_the_tag_of_its_environment(
    url: str, texts: list[str], languages: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOEMBED_TAG", "fr")
    with options.connect(url, None) as client:
        assert near(client.encode(texts), languages.encode(texts, tag="fr"))


# ---- what an expert sees -----------------------------------------------------------------------------------


def test_the_experts_of_a_token_are_those_of_its_tag(languages: Embedder, roles: Embedder) -> None:
    for number, tag in enumerate(LANGUAGES):
        found = token_experts(languages, "the owl", tag=tag)
        assert found.layers
        assert all(layer.experts == [[number]] * 4 for layer in found.layers)
    query = token_experts(roles, "the owl", role="query")
    assert all(set(map(tuple, layer.experts)) == {(0,)} for layer in query.layers)
    with pytest.raises(UserError, match="pass tag"):
        token_experts(languages, "the owl")


def test_models_without_tags_refuse_one_there_too(make_model: MakeModel, moe_model: Embedder) -> None:
    for model in (make_model(), moe_model):
        with pytest.raises(UserError, match="leave tag out"):
            token_experts(model, "the owl", tag="de")
