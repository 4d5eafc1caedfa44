"""Texts in, unit vectors out: shapes, prompts, lengths, precision, and the name of the space they live in."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import HfFolder, MakeModel
from moembed.embedder import Embedder
from moembed.model.pooling import POOLING
from moembed.moe.layer import MoE
from moembed.types import TruncationWarning, UserError

EQUAL = 1e-6  # the same kernels on the same numbers, in another order at most


# ---- encode --------------------------------------------------------------------------------------


def test_vectors_are_float32_of_length_one(moe_model: Embedder, texts: list[str]) -> None:
    vectors = moe_model.encode(texts)
    assert vectors.shape == (len(texts), moe_model.dim) == (8, 16)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert len(np.unique(vectors, axis=0)) == len(texts)


def test_one_text_gives_one_vector_and_none_gives_none(moe_model: Embedder) -> None:
    assert moe_model.encode("worms").shape == (16,)
    assert np.abs(moe_model.encode("worms") - moe_model.encode(["worms", "moles"])[0]).max() <= EQUAL
    assert np.isfinite(moe_model.encode("")).all()
    assert moe_model.encode([]).shape == (0, 16)
    assert moe_model.encode([], dim=4).shape == (0, 4)


@pytest.mark.parametrize("dim", [1, 5, 16])
def test_dim_cuts_and_then_normalises_again(dim: int, moe_model: Embedder, texts: list[str]) -> None:
    whole = moe_model.encode(texts)[:, :dim]
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    assert np.abs(moe_model.encode(texts, dim=dim) - expected).max() <= EQUAL


@pytest.mark.parametrize("dim", [0, -1, 17])
def test_a_dim_the_model_does_not_have_is_refused(dim: int, moe_model: Embedder) -> None:
    for use in (lambda: moe_model.encode(["worms"], dim=dim), lambda: moe_model.space_id(dim=dim)):
        with pytest.raises(UserError, match=rf"dim {dim} is not within 1\.\.16"):
            use()


def test_a_prompt_is_a_prefix_by_name_and_by_role(moe_model: Embedder, texts: list[str]) -> None:
    plain = moe_model.encode(texts)
    asked = moe_model.encode(["query: " + text for text in texts])
    assert np.array_equal(moe_model.encode(texts, "query"), asked)
    assert np.array_equal(moe_model.encode_query(texts), asked)
    assert np.array_equal(moe_model.encode_document(texts), moe_model.encode(texts, "document"))
    assert np.abs(plain - asked).max() > 0.01
    assert np.array_equal(moe_model.encode_query(texts, dim=4), moe_model.encode(texts, "query", 4))


@pytest.mark.parametrize(
    ("prompts", "default", "query", "document"),
    [
        ({"query": "q: ", "document": "d: "}, None, "query", "document"),
        ({"query": "q: ", "passage": "p: "}, None, "query", "passage"),
        ({"query": "q: "}, None, "query", None),
        ({"all": "a: "}, "all", "all", "all"),
        ({"all": "a: ", "query": "q: "}, "all", "query", "all"),
        ({}, None, None, None),
    ],
)
def test_each_role_finds_its_prompt(
    prompts: dict[str, str],
    default: str | None,
    query: str | None,
    document: str | None,
    make_model: MakeModel,
) -> None:
    model = make_model(prompts=prompts)
    model.tokenizer.default_prompt = default
    assert (model.role_prompt("query"), model.role_prompt("document")) == (query, document)


def test_an_unknown_prompt_is_refused_with_a_hint(moe_model: Embedder) -> None:
    with pytest.raises(UserError, match=r"no prompt named 'quary' .*did you mean 'query'"):
        moe_model.encode(["worms"], "quary")


def test_what_is_not_text_is_refused(moe_model: Embedder) -> None:
    with pytest.raises(UserError, match="text 1 is a float, not a string"):
        moe_model.encode(["worms", float("nan")])  # type: ignore[list-item]


def test_cut_texts_are_counted_aloud(moe_model: Embedder, texts: list[str]) -> None:
    lengths = [len(row) for row in moe_model.tokenizer.rows(texts)[0]]
    cut = sum(length > 8 for length in lengths)
    assert 0 < cut < len(texts)
    moe_model.tokenizer.max_length = 8
    with pytest.warns(TruncationWarning, match=rf"^{cut} of 8 texts were cut at 8 tokens$"):
        vectors = moe_model.encode(texts)
    again, truncated = moe_model.encode_counted(texts)
    assert truncated == cut
    assert np.array_equal(again, vectors)
    moe_model.tokenizer.max_length = max(lengths)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moe_model.encode(texts)


def test_progress_adds_up_to_the_texts(moe_model: Embedder, texts: list[str]) -> None:
    seen: list[int] = []
    moe_model.encode(texts, batch_tokens=20, progress=seen.append)
    assert sum(seen) == len(texts)
    assert len(seen) > 1


@pytest.mark.parametrize("training", [True, False])
def test_encoding_in_the_middle_of_training_is_calm_and_leaves_no_trace(
    training: bool, make_model: MakeModel, texts: list[str]
) -> None:
    model = make_model(dropout=0.5).train(training)
    assert np.array_equal(model.encode(texts), model.encode(texts))
    assert model.training == training
    assert all(parameter.requires_grad for parameter in model.parameters())


# ---- pooling -------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 10**6))
def test_every_pooling_equals_its_definition(length_B: list[int], seed: int) -> None:
    hidden_TD = torch.randn(sum(length_B), 3, generator=torch.Generator().manual_seed(seed))
    definitions = {
        "mean": lambda text: text.sum(0) / len(text),
        "cls": lambda text: text[0],
        "max": lambda text: torch.stack([coordinate.max() for coordinate in text.T]),
        "lasttoken": lambda text: text[len(text) - 1],
        "weightedmean": lambda text: (
            sum((i + 1) * state for i, state in enumerate(text)) / sum(range(1, len(text) + 1))
        ),
    }
    assert definitions.keys() == POOLING.keys()
    for name, define in definitions.items():
        expected = torch.stack([define(text) for text in hidden_TD.split(length_B)])
        torch.testing.assert_close(POOLING[name](hidden_TD, length_B), expected)


# ---- precision and space -------------------------------------------------------------------------


def test_bfloat16_vectors_are_close(minilm: Path, texts: list[str]) -> None:
    full = Embedder.from_pretrained(minilm, device="cpu").encode(texts)
    half = Embedder.from_pretrained(minilm, dtype="bfloat16", device="cpu").encode(texts)
    assert half.dtype == np.float32
    assert (full * half).sum(1).min() > 0.99


def test_in_bfloat16_routers_keep_their_float32_weights(
    moe_model: Embedder, texts: list[str], tmp_path: Path
) -> None:
    moe_model.save_pretrained(tmp_path / "model")
    half = Embedder.from_pretrained(tmp_path / "model", dtype="bfloat16", device="cpu")
    routers = [module.router for module in half.modules() if isinstance(module, MoE)]
    originals = [module.router for module in moe_model.modules() if isinstance(module, MoE)]
    assert len(routers) == 2
    for router, original in zip(routers, originals, strict=True):
        assert torch.equal(router.weight_ED, original.weight_ED)
    others = [p for name, p in half.named_parameters() if ".router." not in name]
    assert {p.dtype for p in others} == {torch.bfloat16}
    cosine = (moe_model.encode(texts) * half.encode(texts)).sum(1)
    assert np.median(cosine) > 0.99  # a token near a tie may change its experts, and its text with them


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"dtype 'int3' is not available \(known: float32, bfloat16, float16, int8\)"
    ):
        Embedder.from_pretrained(tmp_path, dtype="int3")


def test_both_precisions_of_a_folder_share_a_space(moe_model: Embedder, tmp_path: Path) -> None:
    moe_model.save_pretrained(tmp_path / "model")
    loaded = [Embedder.from_pretrained(tmp_path / "model", d, "cpu") for d in ("float32", "bfloat16")]
    assert {model.space_id("query", 4) for model in loaded} == {moe_model.space_id("query", 4)}
    assert loaded[0].space_id() == loaded[0].space_id(dim=16)


def test_whatever_changes_the_vectors_changes_the_space(make_model: MakeModel) -> None:
    model = make_model()
    ids = {
        "itself": model.space_id(),
        "query prompt": model.space_id("query"),
        "document prompt": model.space_id("document"),
        "dim": model.space_id(dim=8),
        "weights": make_model(seed=1).space_id(),
        "pooling": make_model(pooling="cls").space_id(),
        "activation": make_model(activation="relu").space_id(),
        "prompt text": make_model(prompts={"query": "q "}).space_id("query"),
    }
    one = make_model()
    with torch.no_grad():
        one.encoder.layers[2].attention.out.bias[3] += 0.1
    ids["one number"] = one.space_id()
    words = make_model()
    words.tokenizer.backend.add_tokens(["vole"])
    ids["tokenizer"] = words.space_id()
    assert len(set(ids.values())) == len(ids)
    assert make_model().space_id() == model.space_id()
    with pytest.raises(UserError, match="no prompt named 'qery'"):
        model.space_id("qery")


def test_size_counts_what_a_token_can_touch(moe_model: Embedder, hf_folder: HfFolder) -> None:
    total = sum(parameter.numel() for parameter in moe_model.parameters())
    one_expert = 2 * 16 * 24 + 24 + 16
    assert moe_model.num_parameters() == total
    assert moe_model.num_parameters(active=True) == total - 2 * 2 * one_expert
    dense = Embedder.from_pretrained(hf_folder("bert")[0], device="cpu")
    assert dense.num_parameters() == dense.num_parameters(active=True)
