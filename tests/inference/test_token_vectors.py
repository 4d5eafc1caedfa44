"""A vector of every token: what they are, what is left out, in a folder, and who refuses such a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import MakeModel
from moembed.embedder import Embedder
from moembed.encoding import truncate
from moembed.export.gguf.export import export_gguf
from moembed.export.nomic import to_nomic
from moembed.export.onnx.encoder import build
from moembed.folder.parts import Parts
from moembed.model.pooling import PoolingConfig
from moembed.serve.served import ServedModel
from moembed.types import UserError
from moembed.weights.pooling import PoolingOptions, change_pooling


@pytest.fixture
def model(make_model: MakeModel) -> Embedder:
    return make_model(pooling="tokens")


def states(model: Embedder, text: str, prompt: str) -> np.ndarray:
    """The definition, a text alone: the states of its tokens, through the head, at length 1."""
    (row,), _ = model.tokenizer.rows([text], prompt=prompt)
    with torch.no_grad():
        hidden, _ = model.encoder(torch.tensor(row), [len(row)])
        found = model.head(hidden[model.encoder.spec.num_layers])
    return F.normalize(found, dim=-1).numpy()


@pytest.mark.parametrize("role", ["query", "document"])
def test_every_token_has_the_normalised_state_of_it(model: Embedder, texts: list[str], role: str) -> None:
    found = model.encode_tokens(texts, role=role, batch_tokens=20)
    assert (len(found), found.space) == (len(texts), model.space(role=role))
    assert found.length_N.tolist() == model.num_tokens(texts, role=role)
    for i, (text, vector_TM) in enumerate(zip(texts, found, strict=True)):
        np.testing.assert_allclose(vector_TM, states(model, text, model.role_prefix(role)), atol=1e-6)
        np.testing.assert_array_equal(found[i], vector_TM)
    assert len(model.encode_tokens([])) == 0


def test_a_prompt_that_is_left_out_is_read_and_has_no_vector(make_model: MakeModel, texts: list[str]) -> None:
    whole = make_model(pooling="tokens")
    parts = change_pooling(whole.parts(), PoolingOptions(name="tokens", include_prompt=False))
    model = Embedder(parts).eval()
    all_of, found = whole.encode_tokens(texts, role="query"), model.encode_tokens(texts, role="query")
    skipped = model.tokenizer.prompt_tokens(model.role_prefix("query"))
    assert skipped > 1
    for one, other in zip(found, all_of, strict=True):
        np.testing.assert_allclose(one, other[skipped:], atol=1e-6)
    assert found.space != all_of.space


def test_a_prompt_around_the_text_cannot_be_left_out(make_model: MakeModel) -> None:
    whole = make_model(pooling="tokens")
    model = Embedder(change_pooling(whole.parts(), PoolingOptions(name="tokens", include_prompt=False)))
    assert len(whole.encode_tokens(["moles"], prompt="one {} two")) == 1
    with pytest.raises(UserError, match="pooling leaves prompts out"):
        model.encode_tokens(["moles"], prompt="one {} two")


def test_one_with_a_projection_is_the_same_from_its_folder(
    make_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    parts = change_pooling(make_model().parts(), PoolingOptions(name="tokens", dim=6, include_prompt=False))
    model = Embedder(parts).eval()
    model.save_pretrained(tmp_path / "model")
    read = Embedder.from_pretrained(tmp_path / "model")
    assert (read.pooling.config, read.dim) == (PoolingConfig("tokens", include_prompt=False), 6)
    one, other = (some.encode_tokens(texts, role="query") for some in (model, read))
    np.testing.assert_allclose(one.vector_TM, other.vector_TM, atol=1e-5)
    assert one.vector_TM.shape[1] == 6
    np.testing.assert_allclose(np.linalg.norm(one.vector_TM, axis=1), 1, atol=1e-6)
    again = change_pooling(read.parts(), PoolingOptions(name="tokens", dim=6))
    assert again.head == parts.head  # not a second layer behind the first


def test_whoever_needs_one_vector_of_a_text_refuses_by_name(model: Embedder, tmp_path: Path) -> None:
    parts: Parts = model.parts()
    refusals = {
        "one vector": [
            lambda: model.encode(["a"]),
            lambda: model.vectors([]),
            lambda: model.embed([[2, 3]]),
            lambda: ServedModel("m", model),
        ],
        "'tokens'": [lambda: build(parts), lambda: export_gguf(parts, tmp_path / "m.gguf", "f32")],
        "every token": [lambda: to_nomic(parts)],
    }
    for words, calls in refusals.items():
        for call in calls:
            with pytest.raises(UserError, match=words):
                call()


def test_a_model_of_one_vector_has_none_of_tokens(make_model: MakeModel) -> None:
    with pytest.raises(UserError, match=r"one vector of a text .*'mean'"):
        make_model().encode_tokens(["a"])
    with pytest.raises(UserError, match="no other stands beside"):
        PoolingConfig("tokens+mean")
    with pytest.raises(ValueError, match="'mean' has no dim"):
        PoolingOptions(name="mean", dim=4)


def test_tokens_of_fewer_coordinates_are_the_first_ones(
    model: Embedder, texts: list[str], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "m")
    whole = Embedder.from_pretrained(tmp_path / "m", device="cpu")
    short = Embedder.from_pretrained(tmp_path / "m", device="cpu", dim=6)
    expected, found = whole.encode_tokens(texts, role="query"), short.encode_tokens(texts, role="query")
    np.testing.assert_allclose(found.vector_TM, truncate(expected.vector_TM, 6), atol=1e-6)
    assert found.length_N.tolist() == expected.length_N.tolist()
    assert found.space != expected.space
