"""Poolings that learn, beside PyTorch's own attention, one text at a time; from a recipe to the folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from conftest import HfFolder, MakeModel
from moembed.embedder import Embedder
from moembed.encoding import View
from moembed.export.gguf.graph import as_graph
from moembed.export.onnx.encoder import build
from moembed.folder.read import read_folder
from moembed.inference.member import member
from moembed.interop.attention_pooling import AttentionPooling
from moembed.model.attention_pooling import AttentionSize
from moembed.model.head import Dense, HeadConfig, Normalize
from moembed.model.pooling import POOLING, Pooling, PoolingConfig
from moembed.packing import pack
from moembed.runs.inspect import describe
from moembed.types import UserError
from moembed.weights.pooling import PoolingOptions, change_pooling

EQUAL = 1e-5
WIDTH, LAYERS = 12, 3
LEARNING = ("latent_attention", "multi_layer")


def random_pooling(name: str, width: int = WIDTH, include: bool = True, heads: int = 4) -> Pooling:
    config = PoolingConfig(name, include, AttentionSize(5, heads, LAYERS))
    generator = torch.Generator().manual_seed(0)
    shapes = config.shapes(width)
    return Pooling(config, width, {n: 0.5 * torch.randn(s, generator=generator) for n, s in shapes.items()})


def slowly(pooling: Pooling, layers: list[Tensor]) -> Tensor:
    """One text by ``nn.MultiheadAttention``, whose queries are multiplied by the scales of their heads."""
    own = {name.partition(".")[2]: tensor.detach() for name, tensor in pooling.state().items()}
    heads = len(own["head_scale"])

    def norm(state: Tensor, name: str) -> Tensor:
        return F.layer_norm(state, [WIDTH], own[f"{name}.weight"], own[f"{name}.bias"])

    attention = nn.MultiheadAttention(WIDTH, heads, bias=False)
    scale = own["head_scale"].repeat_interleave(WIDTH // heads)[:, None]
    with torch.no_grad():
        parts = [own["query.weight"] * scale, own["key.weight"], own["value.weight"]]
        attention.in_proj_weight.copy_(torch.cat(parts))
        attention.out_proj.weight.copy_(own["out.weight"])
    if pooling.name == "latent_attention":
        query, key = layers[-1], own["latents"]
    else:
        key = torch.stack([state.mean(0) for state in layers]) + own["layers"][: len(layers)]
        query = own["latents"]
    keys = norm(key, "key_norm")
    state = query + attention(norm(query, "query_norm"), keys, keys, need_weights=False)[0]
    inner = F.gelu(norm(state, "ffn_norm") @ own["up.weight"].T + own["up.bias"])
    return (state + inner @ own["down.weight"].T + own["down.bias"]).mean(0)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=4),
    st.sampled_from(LEARNING),
    st.integers(1, LAYERS),
    st.booleans(),
)
def test_each_text_alone_gives_the_same(
    texts: list[tuple[int, int]], name: str, depth: int, include: bool
) -> None:
    pooling = random_pooling(name, include=include)
    length_B = [length for length, _ in texts]
    prompt_B = [min(prompt, length - 1) for length, prompt in texts]
    generator = torch.Generator().manual_seed(1)
    layers = [torch.randn(sum(length_B), WIDTH, generator=generator) for _ in range(depth)]
    rows = zip(*(states.split(length_B) for states in layers), strict=True)
    expected = [
        slowly(pooling, [state if include else state[prompt:] for state in row])
        for row, prompt in zip(rows, prompt_B, strict=True)
    ]
    found = pooling(layers[-1], length_B, prompt_B, layers)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)


def pooled(make_model: MakeModel, name: str, **options: object) -> Embedder:
    parts = make_model(num_layers=LAYERS).parts()
    made = change_pooling(parts, PoolingOptions.model_validate({"name": name, **options}))
    return Embedder(made).eval()


def test_latent_attention_starts_as_the_mean(make_model: MakeModel, texts: list[str]) -> None:
    fresh, plain = pooled(make_model, "latent_attention"), make_model(num_layers=LAYERS)
    assert np.array_equal(fresh.encode(texts), plain.encode(texts))
    assert fresh.space() != plain.space()


@pytest.mark.parametrize("name", LEARNING)
def test_two_steps_move_what_is_learned_and_the_folder_keeps_it(
    name: str, make_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    model = pooled(make_model, name, latents=6, include_prompt=False)
    optimizer = torch.optim.SGD(model.pooling.parameters(), lr=0.5)
    batch = pack(model.rows(texts)[0], prompt_tokens=[0] * len(texts))
    before, state = model.encode(texts), {n: t.clone() for n, t in model.pooling.state().items()}
    for _ in range(2):  # what stands before zeros moves with the second step
        optimizer.zero_grad()
        model(batch).vector_BM[:, :3].sum().backward()
        optimizer.step()
    moved = {n.partition(".")[2] for n, t in model.pooling.state().items() if not torch.equal(t, state[n])}
    assert {"latents", "out.weight", "down.weight", "up.weight", "query.weight", "value.weight"} <= moved
    assert np.abs(model.encode(texts) - before).max() > EQUAL
    model.save_pretrained(tmp_path / "m")
    again = Embedder.from_pretrained(tmp_path / "m", device="cpu")
    assert again.pooling.config == model.pooling.config
    for prompt in ("", "an owl: "):
        assert np.array_equal(again.encode(texts, prompt=prompt), model.encode(texts, prompt=prompt))
    assert again.space() == model.space()
    assert describe(tmp_path / "m")["parameters"] == model.num_parameters()
    one_by_one = np.stack([again.encode(text, prompt="an owl: ") for text in texts])
    assert np.abs(one_by_one - again.encode(texts, prompt="an owl: ")).max() <= EQUAL


@pytest.mark.parametrize("name", LEARNING)
def test_a_prompt_left_out_of_pooling_is_still_read(
    name: str, make_model: MakeModel, texts: list[str]
) -> None:
    model = pooled(make_model, name, include_prompt=False)
    inside = Embedder(change_pooling(model.parts(), PoolingOptions(name=name, include_prompt=True))).eval()
    long, prompt = texts[0], "an owl: "
    assert np.array_equal(model.encode(long), inside.encode(long))
    assert np.abs(model.encode(long, prompt=prompt) - inside.encode(long, prompt=prompt)).max() > EQUAL
    assert np.abs(model.encode(long, prompt=prompt) - model.encode(long, prompt="worms: ")).max() > EQUAL


def test_layers_of_a_multi_layer_model_are_the_small_model(make_model: MakeModel, texts: list[str]) -> None:
    model = pooled(make_model, "multi_layer")
    for depth in (1, 2):
        small = Embedder(member(model.parts(), View(layers=depth))).eval()
        view = model.vectors(texts, view=View(layers=depth))
        assert np.array_equal(view.array, small.encode(texts))
        assert view.space == small.space()
    both = model(model.tokenizer.batch(texts), [1, 3]).by_depth
    assert sorted(both) == [1, 3]
    assert np.abs(both[3].detach().numpy() - model.encode(texts)).max() <= EQUAL
    with pytest.raises(UserError, match="made for 1 to 3 layers"):
        model(model.tokenizer.batch(texts), [0, 3])
    with pytest.raises(UserError, match="given the last alone"):
        model.pooling(torch.zeros(2, 16), [2])


def test_the_same_pooling_again_keeps_what_it_learned(make_model: MakeModel) -> None:
    parts = pooled(make_model, "multi_layer+mean", latents=6).parts()
    parts = replace(parts, pooling_state={name: tensor + 1 for name, tensor in parts.pooling_state.items()})
    again = change_pooling(parts, PoolingOptions(name="multi_layer+mean", latents=6))
    assert again.pooling_state is parts.pooling_state
    other = change_pooling(parts, PoolingOptions(name="multi_layer+mean", latents=7))
    assert other.pooling_state["0.latents"].shape == (7, 16)


def test_bad_options_are_one_sentence(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="pooling 'deepest' is not supported"):
        PoolingOptions(name="deepest")
    with pytest.raises(ValueError, match="'mean' learns nothing, so it has no latents"):
        PoolingOptions(name="mean", latents=3)
    dense = Dense(16, 16)
    state = {f"0.{name}": torch.zeros(shape) for name, shape in dense.shapes().items()}
    parts = replace(make_model().parts(), head=HeadConfig((dense, Normalize())), head_state=state)
    with pytest.raises(UserError, match="gives 32 coordinates, and the layers behind it take 16"):
        change_pooling(parts, PoolingOptions(name="mean+max"))


@pytest.mark.parametrize("name", LEARNING)
def test_exporters_refuse_it_by_name(name: str, make_model: MakeModel) -> None:
    parts = pooled(make_model, name).parts()
    with pytest.raises(UserError, match=name):
        build(parts)
    with pytest.raises(UserError, match=name):
        as_graph(parts, fold_expert_bias=False)


def test_sentence_transformers_loads_it(hf_folder: HfFolder, texts: list[str], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    parts = read_folder(hf_folder("bert")[0])
    pooling = random_pooling("latent_attention", 16, include=False, heads=8)
    ours = Embedder(replace(parts, pooling=pooling.config, pooling_state=pooling.state())).eval()
    ours.save_pretrained(tmp_path / "m")
    theirs = SentenceTransformer(str(tmp_path / "m"), device="cpu", trust_remote_code=True)
    real = [text for text in texts if text]
    for prompt in ("", "an owl: "):
        expected = theirs.encode(real, prompt=prompt)
        assert np.abs(ours.encode(real, prompt=prompt) - expected).max() <= EQUAL


def test_left_padding_is_right_padding() -> None:
    module = AttentionPooling(random_pooling("latent_attention", include=False))
    states_BSD = torch.randn(3, 6, WIDTH, generator=torch.Generator().manual_seed(2))
    mask_BS = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6, [1, 1, 1, 0, 0, 0]])
    found = []
    for shifts in ((0, 0, 0), (2, 0, 3)):  # the padding of the first and the third text to the front
        turned = [torch.stack([row.roll(n, 0) for row, n in zip(value, shifts, strict=True)])
                  for value in (states_BSD, mask_BS)]  # fmt: skip
        features = {"token_embeddings": turned[0], "attention_mask": turned[1], "prompt_length": 2}
        found.append(module(features)["sentence_embedding"])
    torch.testing.assert_close(found[0], found[1])


def test_sentence_transformers_refuses_a_pooling_of_all_layers(make_model: MakeModel, tmp_path: Path) -> None:
    pooled(make_model, "multi_layer").save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match="reads the states after every layer"):
        AttentionPooling.load(str(tmp_path / "m" / "1_AttentionPooling"))


def test_the_names_are_in_the_table() -> None:
    assert {name for name in POOLING if PoolingConfig(name).learns} == set(LEARNING)
