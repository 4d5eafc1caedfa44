"""A model whose experts are chosen by a tag is, for texts of one tag, the dense model of that expert."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import MakeModel
from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.metrics import Qrels
from moembed.evaluation.tagged import language, tagged
from moembed.types import UserError
from tagged_models import tagged_model

EQUAL = 1e-5
MakeTagged = Callable[..., "tuple[Embedder, dict[str, Embedder]]"]


@pytest.fixture
def made(make_model: MakeModel) -> MakeTagged:
    """A model with an expert per tag, each another one, and by tag the dense model that it must equal."""

    def make(tags: list[str], **router: Any) -> tuple[Embedder, dict[str, Embedder]]:
        dense = make_model(prompts=router.pop("prompts", None))
        model = tagged_model(dense.parts(), tags=tags, **router)
        twins: dict[str, Embedder] = {}
        state = model.parts().state
        for number, tag in enumerate(tags):
            own = dict(dense.parts().state)
            for layer in model.encoder.spec.moe_layers:
                for part, shape in (("up", "EFD"), ("down", "EDF")):
                    block = f"layers.{layer}.ffn.{part}"
                    own[f"{block}.weight"] = state[f"{block}_{shape}"][number]
                    own[f"{block}.bias"] = state[f"{block}_bias_{shape[:2]}"][number]
            twins[tag] = Embedder(replace(dense.parts(), state=own)).eval()
        return model, twins

    return make


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one - other).max() <= EQUAL)


def test_a_tag_takes_its_expert_and_no_other(made: MakeTagged, texts: list[str]) -> None:
    model, twins = made(["de", "en", "fr"])
    for tag, twin in twins.items():
        assert close(model.encode(texts, tag=tag), twin.encode(texts))
    assert not close(model.encode(texts, tag="de"), model.encode(texts, tag="en"))


def test_a_tag_for_each_text(made: MakeTagged, texts: list[str]) -> None:
    model, twins = made(["de", "en", "fr"])
    tags = [["fr", "de", "en"][i % 3] for i in range(len(texts))]
    expected = np.stack([twins[tag].encode(text) for tag, text in zip(tags, texts, strict=True)])
    assert close(model.encode(texts, tag=tags), expected)
    assert close(model.encode(texts, tag=tags, batch_size=2), expected)
    assert close(model.encode(iter(texts * 700), tag=tags * 700), np.tile(expected, (700, 1)))  # two windows


def test_roles_are_tags_by_themselves(made: MakeTagged, texts: list[str]) -> None:
    model, twins = made(["query", "document"])
    expected = twins["query"].encode_query(texts)
    assert close(model.encode_query(texts), expected)
    assert close(model.encode(texts, prompt_name="query"), expected)
    assert close(model.encode(texts, prompt="query: "), expected)
    assert close(model.vectors(texts, role="query").array, expected)
    assert close(model.encode_document(texts), twins["document"].encode_document(texts))
    rows, _ = model.rows(texts, role="document")
    tags = model.tag_numbers(texts, role="document")
    assert close(model.embed(rows, tags=tags), twins["document"].encode_document(texts))
    assert close(model.encode_query(texts, tag="document", prompt=""), twins["document"].encode(texts))


def test_roles_need_no_prompt(made: MakeTagged, texts: list[str]) -> None:
    model, twins = made(["query", "document"], prompts={})
    assert close(model.encode_query(texts), twins["query"].encode(texts))
    assert close(model.encode_document(texts), twins["document"].encode(texts))


def test_nothing_is_guessed(made: MakeTagged, texts: list[str]) -> None:
    model, _ = made(["query", "document"])
    with pytest.raises(UserError, match=r"known: document, query.*pass tag"):
        model.encode(texts)
    with pytest.raises(UserError, match="pass tag"):
        model.vectors(texts, role="clustering")
    with pytest.raises(UserError, match=r"no experts for the tag 'de' \(known: document, query\)"):
        model.encode(texts, tag="de")
    with pytest.raises(UserError, match="tag gives 1 tags for 8 texts"):
        model.encode(texts, tag=["query"])
    with pytest.raises(UserError, match="tag gives 3 for a text"):
        model.encode(texts, tag=[3] * len(texts))  # type: ignore[list-item]
    with pytest.raises(UserError, match="pass tag"):
        model.embed(model.rows(texts)[0])
    with pytest.raises(UserError, match="leave tag out"):
        Embedder(made(["de"])[1]["de"].parts()).encode(texts, tag="de")


def test_the_default_tag_is_used_and_said(made: MakeTagged, texts: list[str]) -> None:
    model, twins = made(["de", "en"], default_tag="en")
    with pytest.warns(UserWarning, match="the experts of 'en', the default_tag"):
        assert close(model.encode(texts), twins["en"].encode(texts))
    with pytest.raises(UserError, match="no experts for the tag 'fr'"):
        model.encode(texts, tag="fr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(texts, tag="de")


def test_a_function_finds_the_tags(made: MakeTagged, texts: list[str]) -> None:
    model, twins = made(["de", "en"], default_tag="en")
    model.tag = lambda some: ["de" if "owl" in text else None for text in some]
    expected = [twins["de" if "owl" in text else "en"].encode(text) for text in texts]
    with pytest.warns(UserWarning, match="default_tag"):
        assert close(model.encode(texts), np.stack(expected))
    model.tag = lambda some: ["de"]
    with pytest.raises(UserError, match="the function that finds tags gives 1 tags for 8 texts"):
        model.encode(texts)
    model.tag = "de"
    assert close(model.encode(texts), twins["de"].encode(texts))
    assert close(model.embed(model.rows(texts)[0]), twins["de"].encode(texts))
    model.tag = "fr"
    with pytest.raises(UserError, match="no experts for the tag 'fr'"):
        model.embed(model.rows(texts)[0])


def test_the_tag_is_part_of_the_space(made: MakeTagged) -> None:
    model, _ = made(["de", "en"])
    spaces = [model.space(), model.space(tag="de"), model.space(tag="en"), model.space(tag=["en", "de"])]
    assert len(set(spaces)) == 4
    assert model.vectors(["an owl"], tag="de").space == spaces[1]
    model.tag = "en"
    assert model.space() == spaces[2]
    roles, _ = made(["query", "document"], prompts={})
    assert roles.space(role="query") == roles.vectors(["an owl"], role="query").space
    assert roles.space(role="query") != roles.space(role="document")


def test_the_table_is_saved_with_the_model(made: MakeTagged, texts: list[str], tmp_path: Path) -> None:
    model, twins = made(["fr", "de"], default_tag="de")
    model.save_pretrained(tmp_path / "m")
    again = Embedder.from_pretrained(tmp_path / "m", device="cpu")
    assert again.tags == model.tags
    assert again.space(tag="fr") == model.space(tag="fr")
    assert close(again.encode(texts, tag="fr"), twins["fr"].encode(texts))


def test_a_task_of_one_language_has_its_tag(made: MakeTagged, texts: list[str]) -> None:
    model, _ = made(["de", "en"])
    qrels = Qrels.from_judgements(np.array([0]), np.array([0]), np.array([1.0]), 1)
    task = RetrievalTask("x-de", ["owl"], ["an owl"], qrels, ["q"], ["d"], [], {"q": "de"})
    with tagged(model, task):
        assert model.space() == model.space(tag="de")
    assert model.tag is None
    with tagged(model, replace(task, language={"q": "sw"})):
        assert model.tag is None
    model.tag = "en"
    with tagged(model, task):
        assert model.tag == "en"
    assert language(replace(task, query_ids=["q", "r"], language={"q": "de", "r": "en"})) is None


def test_a_dense_model_with_prompts_by_language_takes_those_of_a_task(make_model: MakeModel) -> None:
    prompts = {"query": "q: ", "query-de": "Frage: ", "document": "d: "}
    model = make_model(prompts=prompts)
    before, texts = model.tokenizer, ["owl", "a red bird"]

    qrels = Qrels.from_judgements(np.array([0]), np.array([0]), np.array([1.0]), 1)
    task = RetrievalTask("x-de", ["owl"], ["an owl"], qrels, ["q"], ["d"], [], {"q": "de"})
    with tagged(model, task):
        assert np.array_equal(model.encode_query(texts), model.encode(texts, prompt_name="query-de"))
        documents = model.encode_document(texts)
    assert model.tokenizer is before
    assert np.array_equal(documents, model.encode_document(texts))  # has no prompt of its own in German
    with tagged(model, replace(task, language={"q": "fr"})):
        assert np.array_equal(model.encode_query(texts), model.encode(texts, prompt_name="query"))
