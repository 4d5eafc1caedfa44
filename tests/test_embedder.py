"""Texts in, unit vectors out: shapes, prompts, lengths, precision, and the name of the space they live in."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from conftest import HfFolder, MakeModel
from moembed.embedder import Embedder
from moembed.encoding import View
from moembed.model.pooling import POOLING, Pooling, PoolingConfig
from moembed.moe.layer import MoE
from moembed.tokenizer import Tokenizer
from moembed.types import TruncationWarning, UserError

PLAIN = sorted(m for m in POOLING if not (PoolingConfig(m).learns or PoolingConfig(m).per_token))

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
    for use in (lambda: moe_model.encode(["worms"], dim=dim), lambda: moe_model.space(view=View(dim=dim))):
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
    again = moe_model.vectors(texts)
    assert again.truncated == cut
    assert np.array_equal(again.array, vectors)
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


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_batch_size_bounds_every_batch(batch_size: int, moe_model: Embedder, texts: list[str]) -> None:
    seen: list[int] = []
    vectors = moe_model.encode(texts, batch_size=batch_size, progress=seen.append)
    assert max(seen) <= batch_size
    assert np.abs(vectors - moe_model.encode(texts)).max() <= EQUAL


def test_limits_below_one_and_two_prompts_are_refused(moe_model: Embedder) -> None:
    for name in ("batch_size", "batch_tokens"):
        for most in (0, -5, 1.5, True, "8"):
            for texts in (["worms"], []):
                complaint = re.escape(f"{name} must be a whole number of at least 1, not {most!r}")
                with pytest.raises(UserError, match=complaint):
                    moe_model.encode(texts, **{name: most})
    with pytest.raises(UserError, match="prompt_name or prompt, not both"):
        moe_model.encode(["worms"], "query", prompt="q ")


@pytest.mark.parametrize("texts", [["worms"], []])
@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        (5, "the prompt must be a string, not a int"),
        (b"query: ", "the prompt must be a string, not a bytes"),
        ("\ud800", "the prompt .* is not valid Unicode"),
    ],
)
def test_a_prompt_that_is_no_text_is_refused(
    prompt: Any, complaint: str, texts: list[str], moe_model: Embedder
) -> None:
    for use in (moe_model.encode, moe_model.vectors):
        with pytest.raises(UserError, match=complaint):
            use(texts, prompt=prompt)
    with pytest.raises(UserError, match="the name of a prompt must be a string, not a int"):
        moe_model.encode(texts, prompt_name=5)  # type: ignore[arg-type]


def test_a_prompt_of_ones_own_is_put_in_front(moe_model: Embedder, texts: list[str]) -> None:
    assert np.array_equal(moe_model.encode(texts, prompt="query: "), moe_model.encode_query(texts))
    assert np.array_equal(moe_model.encode(texts, prompt=""), moe_model.encode(texts))


def test_similarity_is_the_cosine_of_all_pairs(moe_model: Embedder, texts: list[str]) -> None:
    vectors = moe_model.encode(texts)
    assert moe_model.similarity(vectors * 3, vectors[:2]) == pytest.approx(vectors @ vectors[:2].T, abs=1e-6)
    assert moe_model.similarity(vectors[0], vectors[1]).shape == (1, 1)


@pytest.mark.parametrize("kind", ["generator", "tuple", "map", "keys", "array", "series", "column", "arrow"])
def test_whatever_has_an_order_gives_its_rows(kind: str, moe_model: Embedder) -> None:
    texts = ["the mole digs", "an owl hunts", "", "worms"]
    made = {
        "generator": lambda: (text for text in texts),
        "tuple": lambda: tuple(texts),
        "map": lambda: map(str, texts),
        "keys": lambda: dict.fromkeys(texts).keys(),
        "array": lambda: np.array(texts),
        "series": lambda: pytest.importorskip("pandas").Series(texts, index=[7, 5, 3, 1]),
        "column": lambda: pytest.importorskip("datasets").Dataset.from_dict({"text": texts})["text"],
        "arrow": lambda: pytest.importorskip("pyarrow").chunked_array([texts[:1], texts[1:]]),
    }[kind]()
    assert np.array_equal(moe_model.encode(made), moe_model.encode(texts))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: pytest.importorskip("pandas").DataFrame({"text": ["a"]}), "a DataFrame is a table"),
        (lambda: pytest.importorskip("datasets").Dataset.from_dict({"text": ["a"]}), "a Dataset is a table"),
        (lambda: pytest.importorskip("pyarrow").table({"text": ["a"]}), "a Table is a table"),
        (lambda: {"a", "b"}, "a set has no order"),
        (lambda: {"a": 1}, "texts must be a list of strings, not a dict"),
        (lambda: None, "texts must be a list of strings, not a NoneType"),
        (lambda: Path("a"), "texts must be a list of strings, not a"),
        (lambda: b"ab", "texts must be a list of strings, not a bytes"),
        (lambda: bytearray(b"ab"), "texts must be a list of strings, not a bytearray"),
        (lambda: np.array("ab"), "texts must be a list of strings, not a ndarray without a dimension"),
        (lambda: np.array([["a"], ["b"]]), "text 0 is a ndarray, not a string"),
        (lambda: iter(["a", None]), "text 1 is a NoneType, not a string"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_texts_is_refused(
    make: Callable[[], Any], complaint: str, moe_model: Embedder
) -> None:
    for use in (moe_model.encode, moe_model.vectors, moe_model.rows):
        with pytest.raises(UserError, match=complaint):
            use(make())


def test_the_two_halves_are_the_whole(moe_model: Embedder, texts: list[str]) -> None:
    rows, truncated = moe_model.rows(texts, role="query")
    whole = moe_model.vectors(texts, role="query")
    assert np.array_equal(moe_model.embed(rows), whole.array)
    assert (whole.truncated, whole.space) == (truncated, moe_model.space(role="query"))
    assert np.array_equal(whole.array, moe_model.encode_query(texts))


@pytest.mark.parametrize("pooling", PLAIN)
def test_a_text_without_a_token_is_a_row_of_zeros(
    pooling: str, make_model: MakeModel, texts: list[str]
) -> None:
    model = make_model(pooling=pooling)
    bare = Backend.from_str(model.tokenizer.backend.to_str())
    bare.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    model.tokenizer = Tokenizer(bare, 32)
    some = ["", *texts, ""]
    vectors = model.encode(some)
    empty = np.array([not text for text in some])
    assert not vectors[empty].any()
    assert np.linalg.norm(vectors[~empty], axis=1) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(vectors[~empty], model.encode([text for text in some if text]))
    assert not model.encode("").any()
    assert model.encode("").shape == (16,)
    for loss in (model(model.tokenizer.batch(batch)).vector_BM.sum() for batch in (some, texts)):
        model.zero_grad()
        loss.backward()  # zeros have no gradient, and break none
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_default_prompt_that_encode_does_not_add_is_mentioned_once(make_model: MakeModel) -> None:
    model = make_model(prompts={"query": "query: ", "none": ""})
    model.tokenizer.default_prompt = "query"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode("worms", prompt="")
        model.encode_query("worms")
        model.encode("worms", "none")
    with pytest.warns(UserWarning, match="default prompt, 'query', which encode.* prompt_name='query'"):
        model.encode("worms")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode("worms")
        silent = make_model(prompts={"none": ""})
        silent.tokenizer.default_prompt = "none"
        silent.encode("worms")


def test_max_seq_length_says_what_is_read(moe_model: Embedder) -> None:
    assert moe_model.max_seq_length == moe_model.max_length == 32
    moe_model.max_seq_length = 6
    assert len(moe_model.rows(["moles dig " * 9])[0][0]) == moe_model.max_length == 6
    for tokens in (0, 1, 33, 8.0, "8", None, True):
        with pytest.raises(UserError, match=rf"max_seq_length {tokens!r} is not within 2..32"):
            moe_model.max_seq_length = tokens  # type: ignore[assignment]
    assert moe_model.max_length == 6


# ---- loading -------------------------------------------------------------------------------------


def test_a_path_makes_a_model_and_so_does_a_name(minilm: Path, moe_model: Embedder, tmp_path: Path) -> None:
    moe_model.save_pretrained(tmp_path / "m")
    vectors = Embedder(tmp_path / "m", device="cpu").encode("worms")
    assert np.array_equal(
        vectors, Embedder.from_pretrained(str(tmp_path / "m"), device="cpu").encode("worms")
    )
    named = Embedder("minilm", device="cpu")
    assert named.space() == Embedder.from_pretrained(minilm, device="cpu").space()


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "nonsense:1"])
def test_a_device_that_is_not_there_is_refused(device: str, moe_model: Embedder, tmp_path: Path) -> None:
    moe_model.save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match=f"there is no device '{device}' here; choose cpu"):
        Embedder.from_pretrained(tmp_path / "m", device=device)
    with pytest.raises(UserError, match="the device 'meta' computes no values; choose cpu"):
        Embedder.from_pretrained(tmp_path / "m", device="meta")


# ---- views ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_a_member_is_its_exported_small_model(
    layers: int, moe_model: Embedder, texts: list[str], tmp_path: Path
) -> None:
    moe_model.save_pretrained(tmp_path / "full")
    small = Embedder.from_pretrained(tmp_path / "full", device="cpu", layers=layers)
    assert len(small.encoder.layers) == layers
    small.save_pretrained(tmp_path / "small")
    again = Embedder.from_pretrained(tmp_path / "small", device="cpu")
    seen = moe_model.vectors(texts, view=View(layers=layers, dim=8))
    for model in (small, again):
        found = model.vectors(texts, view=View(dim=8))
        assert np.abs(found.array - seen.array).max() <= EQUAL
        assert found.space == seen.space
    assert (seen.space == moe_model.vectors(texts, view=View(dim=8)).space) == (layers == 4)


def test_fewer_coordinates_from_the_start(moe_model: Embedder, texts: list[str], tmp_path: Path) -> None:
    moe_model.save_pretrained(tmp_path / "full")
    small = Embedder.from_pretrained(tmp_path / "full", device="cpu", dim=8)
    assert small.dim == 8
    assert np.array_equal(small.encode(texts), moe_model.encode(texts, dim=8))
    assert np.array_equal(small.encode(texts, dim=3), moe_model.encode(texts, dim=3))
    assert small.space() == moe_model.space(view=View(dim=8))
    with pytest.raises(UserError, match=r"dim 9 is not within 1\.\.8"):
        small.encode(texts, dim=9)
    small.save_pretrained(tmp_path / "small")
    again = Embedder.from_pretrained(tmp_path / "small", device="cpu")
    assert np.array_equal(again.encode(texts), small.encode(texts))
    whole = Embedder.from_pretrained(tmp_path / "small", device="cpu", dim=16)
    assert np.array_equal(whole.encode(texts), moe_model.encode(texts))


@pytest.mark.parametrize(
    ("view", "complaint"),
    [
        (View(layers=0), r"layers 0 is not within 1\.\.4"),
        (View(layers=5), r"layers 5 is not within 1\.\.4"),
        (View(dim=17), r"dim 17 is not within 1\.\.16"),
        (View(dim=0), r"dim 0 is not within 1\.\.16"),
        (View(dim=4.0), r"dim 4\.0 is not within 1\.\.16"),  # type: ignore[arg-type]
        (View(dim=True), r"dim True is not within 1\.\.16"),
        (View(layers="1"), r"layers '1' is not within 1\.\.4"),  # type: ignore[arg-type]
        (View(layers=True), r"layers True is not within 1\.\.4"),
        (View(experts=2), "experts 2: this model has 4 experts, and a part of them is not a model"),
    ],
)
def test_a_view_beyond_the_model_says_the_bounds(
    view: View, complaint: str, moe_model: Embedder, tmp_path: Path
) -> None:
    moe_model.save_pretrained(tmp_path / "m")
    bounds = {"layers": view.layers, "dim": view.dim, "experts": view.experts}
    for use in (
        lambda: moe_model.vectors(["worms"], view=view),
        lambda: moe_model.embed([[2, 3]], view),
        lambda: moe_model.space(view=view),
        lambda: Embedder.from_pretrained(tmp_path / "m", device="cpu", **bounds),
    ):
        with pytest.raises(UserError, match=complaint):
            use()


def test_the_whole_view_is_the_model(moe_model: Embedder, texts: list[str]) -> None:
    whole = moe_model.vectors(texts, view=View(layers=4, dim=16, experts=4))
    assert np.array_equal(whole.array, moe_model.encode(texts))
    assert whole.space == moe_model.space()


# ---- pooling -------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 10**6))
def test_every_pooling_equals_its_definition(length_B: list[int], seed: int) -> None:
    hidden_TD = torch.randn(sum(length_B), 3, generator=torch.Generator().manual_seed(seed))
    definitions = {
        "mean": lambda text: text.sum(0) / len(text),
        "cls": lambda text: text[0],
        "max": lambda text: torch.stack([coordinate.max() for coordinate in text.T]),
        "lasttoken": lambda text: text[len(text) - 1],
        "mean_sqrt_len_tokens": lambda text: text.sum(0) / math.sqrt(len(text)),
        "weightedmean": lambda text: (
            sum((i + 1) * state for i, state in enumerate(text)) / sum(range(1, len(text) + 1))
        ),
    }
    assert sorted(definitions) == PLAIN
    for name, define in definitions.items():
        expected = torch.stack([define(text) for text in hidden_TD.split(length_B)])
        torch.testing.assert_close(Pooling(PoolingConfig(name), 3)(hidden_TD, length_B), expected)


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
    assert {model.space(role="query", view=View(dim=4)) for model in loaded} == {
        moe_model.space(role="query", view=View(dim=4))
    }
    assert loaded[0].space() == loaded[0].space(view=View(dim=16))


def test_the_space_of_a_model_keeps_its_name(moe_model: Embedder) -> None:
    """Indexes on disk hold these names: a change of the formula would make every one of them foreign."""
    assert moe_model.space() == "88d7db618f341cbf"
    assert moe_model.space(role="query", view=View(dim=8)) == "97f2256383bb81ea"


def test_whatever_changes_the_vectors_changes_the_space(make_model: MakeModel) -> None:
    model = make_model()
    ids = {
        "itself": model.space(),
        "query prompt": model.space(role="query"),
        "document prompt": model.space(role="document"),
        "dim": model.space(view=View(dim=8)),
        "weights": make_model(seed=1).space(),
        "pooling": make_model(pooling="cls").space(),
        "activation": make_model(activation="relu").space(),
        "prompt text": make_model(prompts={"query": "q "}).space(role="query"),
    }
    one = make_model()
    with torch.no_grad():
        one.encoder.layers[2].attention.out.bias[3] += 0.1
    ids["one number"] = one.space()
    words = make_model()
    words.tokenizer.backend.add_tokens(["vole"])
    ids["tokenizer"] = words.space()
    assert len(set(ids.values())) == len(ids)
    assert make_model().space() == model.space()


def test_size_counts_what_a_token_can_touch(moe_model: Embedder, hf_folder: HfFolder) -> None:
    total = sum(parameter.numel() for parameter in moe_model.parameters())
    one_expert = 2 * 16 * 24 + 24 + 16
    assert moe_model.num_parameters() == total
    assert moe_model.num_parameters(active=True) == total - 2 * 2 * one_expert
    dense = Embedder.from_pretrained(hf_folder("bert")[0], device="cpu")
    assert dense.num_parameters() == dense.num_parameters(active=True)
