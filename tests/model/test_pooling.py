"""Pooling one text at a time in plain loops; a way of pooling that learns, from training to the folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import HfFolder, MakeModel
from moembed.embedder import Embedder
from moembed.export.gguf.graph import as_graph
from moembed.export.onnx.encoder import build
from moembed.folder.read import read_folder
from moembed.model.pooled_tokens import Tensors, Tokens
from moembed.model.pooling import POOLING, Mode, Pooling, PoolingConfig
from moembed.runs.inspect import describe
from moembed.training.contrastive.batch import SourceFormat, prepare
from moembed.training.contrastive.settings import ContrastiveConfig
from moembed.types import Pair, UserError

EQUAL = 1e-5
PLAIN = sorted(m for m in POOLING if not (PoolingConfig(m).learns or PoolingConfig(m).per_token))


def slowly(mode: str, hidden_SD: Tensor, prompt: int) -> Tensor:
    """Of one text; places are counted in the whole text, the prompt included."""
    left = hidden_SD[prompt:]
    if not len(left):
        return torch.zeros(hidden_SD.shape[1])
    places = torch.arange(prompt, len(hidden_SD)).float() + 1
    return {
        "mean": lambda: left.sum(0) / len(left),
        "mean_sqrt_len_tokens": lambda: left.sum(0) / len(left) ** 0.5,
        "max": lambda: left.max(0).values,
        "cls": lambda: left[0],
        "lasttoken": lambda: left[-1],
        "weightedmean": lambda: (left * places[:, None]).sum(0) / places.sum(),
    }[mode]()


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=5),
    st.lists(st.sampled_from(PLAIN), min_size=1, max_size=2),
    st.booleans(),
)
def test_pooling_is_the_plain_loop(texts: list[tuple[int, int]], modes: list[str], include: bool) -> None:
    length_B, prompt_B = [length for length, _ in texts], [prompt for _, prompt in texts]
    hidden_TD = torch.randn(sum(length_B), 3, generator=torch.Generator().manual_seed(0))
    states = hidden_TD.split(length_B)
    left_out = [0 if include else min(prompt, length) for length, prompt in texts]
    expected = torch.stack(
        [
            torch.cat([slowly(mode, state, prompt) for mode in modes])
            for state, prompt in zip(states, left_out, strict=True)
        ]
    )
    pooling = Pooling(PoolingConfig("+".join(modes), include), 3)
    torch.testing.assert_close(pooling(hidden_TD, length_B, prompt_B), expected)


# ---- the prompt left out ---------------------------------------------------------------------------------


def without_prompt(folder: Path, mode: str) -> Path:
    values = {"embedding_dimension": 16, "pooling_mode": mode, "include_prompt": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.filterwarnings("ignore::moembed.types.TruncationWarning")
@pytest.mark.parametrize("mode", PLAIN)
def test_a_prompt_left_out_is_that_of_sentence_transformers(
    mode: str, hf_folder: HfFolder, texts: list[str], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    folder, _ = hf_folder("bert")
    without_prompt(folder, mode)
    ours = Embedder.from_pretrained(folder, device="cpu")
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours.save_pretrained(tmp_path / "again")
    again = Embedder.from_pretrained(tmp_path / "again", device="cpu")
    more = [*texts, "the mole digs tunnels under the meadow " * 9]
    for prompt in ("the owl says: ", "", "what does a mole eat? " * 9):
        expected = theirs.encode(more, prompt=prompt, normalize_embeddings=True)
        for model in (ours, again):
            assert np.abs(model.encode(more, prompt=prompt) - expected).max() <= EQUAL
    assert describe(folder)["pooling"] == f"{mode}, without the prompt"
    included = replace(ours.parts(), pooling=PoolingConfig(mode))
    assert Embedder(included).eval().space() != ours.space() == again.space()


def test_who_does_not_say_where_the_prompt_ends_is_refused(hf_folder: HfFolder) -> None:
    model = Embedder.from_pretrained(without_prompt(hf_folder("bert")[0], "mean"), device="cpu")
    rows, _ = model.rows(["worms"], prompt="an owl: ")
    known = model.prompt_tokens(prompt="an owl: ")
    assert known == 4
    assert np.array_equal(model.embed(rows, prompt_tokens=known)[0], model.encode("worms", prompt="an owl: "))
    with pytest.raises(UserError, match=r"leaves the prompt out of pooling .*: pass prompt_tokens"):
        model.embed(rows)


def test_the_trainer_says_where_prompts_end(make_model: MakeModel) -> None:
    model = make_model(prompts={"query": "an owl: ", "document": ""})
    parts = model.parts()
    model = Embedder(replace(parts, pooling=PoolingConfig("mean", include_prompt=False))).eval()
    pair = Pair("worms", "moles eat worms and live long")
    batch = prepare(
        [pair], SourceFormat("query", "document", "info_nce"), model.tokenizer, ContrastiveConfig(steps=1)
    )
    (chunk,), (row_B,) = batch.chunks.batches, batch.chunks.row_CB
    vectors = model(chunk).vector_BM.detach().numpy()
    expected = np.stack([model.encode_query(pair.query), model.encode_document(pair.document)])
    assert np.abs(vectors - expected[row_B]).max() <= EQUAL


# ---- a way of pooling that learns ------------------------------------------------------------------------


def attended(tokens: Tokens, own: Tensors) -> Tensor:
    """Mean weighted by ``exp(query . state)``."""
    weight_T1 = (tokens.hidden_TD.float() @ own["query"]).exp()[:, None]
    return tokens.reduced(tokens.hidden_TD * weight_T1, "sum") / tokens.reduced(weight_T1, "sum")


@pytest.fixture
def learning(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> Embedder:
    """A model that pools by an attention of its own beside the mean."""
    monkeypatch.setitem(POOLING, "attention", Mode(attended, lambda width, size: {"query": (width,)}))
    parts = make_model().parts()
    query_D = torch.randn(16, generator=torch.Generator().manual_seed(1))
    pooling = PoolingConfig("mean+attention")
    return Embedder(replace(parts, pooling=pooling, pooling_state={"1.query": query_D})).eval()


def test_a_pooling_that_learns_is_trained_and_kept(
    learning: Embedder, texts: list[str], tmp_path: Path
) -> None:
    before = learning.encode(texts)
    assert before.shape == (8, 32)
    assert learning.num_parameters() == sum(p.numel() for p in learning.parameters())
    space = learning.space()
    learning(learning.tokenizer.batch(texts)).vector_BM[:, 3].sum().backward()
    query = learning.pooling.tensor("1.query")
    assert query.grad is not None
    assert query.grad.any()
    with torch.no_grad():
        query.add_(query.grad)
    learning.save_pretrained(tmp_path / "model")
    assert describe(tmp_path / "model")["parameters"] == learning.num_parameters()
    again = Embedder.from_pretrained(tmp_path / "model", device="cpu")
    assert torch.equal(again.pooling.tensor("1.query"), query)
    # weights that lie elsewhere in memory may be multiplied in another order: the last bits
    assert np.abs(again.encode(texts) - learning.encode(texts)).max() <= EQUAL
    assert np.abs(again.encode(texts) - before).max() > EQUAL
    assert again.space() == learning.space() != space
    learning.pooling.load({"1.query": torch.zeros(16)})
    flat = learning.encode(texts)
    assert np.abs(flat[:, :16] - flat[:, 16:]).max() <= EQUAL


def test_others_refuse_a_pooling_they_do_not_know_by_name(learning: Embedder, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    learning.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="attention"):
        SentenceTransformer(str(tmp_path / "model"), device="cpu")
    for pooling, name in (("attention", "attention"), ("mean", "leave")):
        parts = learning.parts()
        parts = replace(parts, pooling=PoolingConfig(pooling, include_prompt=name != "leave"))
        with pytest.raises(UserError, match=name):
            build(parts)
        with pytest.raises(UserError, match=name):
            as_graph(parts, fold_expert_bias=False)
    (tmp_path / "model" / "1_AttentionPooling" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"1_AttentionPooling has no model\.safetensors"):
        read_folder(tmp_path / "model")
