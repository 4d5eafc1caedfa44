"""Packed matrices give what the plain ones give, come back to the bit, and never let NaN through unseen."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.inference import engine as serving
from moembed.inference.packed import TILE, tiles
from moembed.moe.layer import MoE
from moembed.moe.router import RouterConfig, Routing
from moembed.types import RouterStats, UserError

pytestmark = pytest.mark.skipif(not serving.can_round(), reason="this PyTorch was built without oneDNN")

KINDS = {
    "dense": {},
    "dense, gated": {"gated": True, "activation": "silu"},
    "tanh": {"activation": "gelu_tanh"},
    "experts": {"moe": FlatMoE(layers=(1, 3), num_experts=4)},
    "gated experts": {"gated": True, "activation": "relu", "moe": FlatMoE(layers=(1,), num_experts=4)},
    "shared bias": {"moe": FlatMoE(layers=(1,), num_experts=4, bias="shared")},
    "no bias": {"moe": FlatMoE(layers=(0, 1), num_experts=4, bias="none"), "ffn_bias": False},
    "shared expert": {"moe": FlatMoE(layers=(1,), num_experts=4, num_shared_experts=1)},
    "raw top-1": {"moe": FlatMoE(layers=(1,), router=RouterConfig(top_k=1, normalize=None))},
    "expert choice": {"moe": FlatMoE(layers=(1,), router=RouterConfig(kind="expert_choice"))},
    "rope, pre-norm": {"position": "rope", "norm": "pre"},
}


@pytest.fixture(params=KINDS, ids=lambda name: name.replace(" ", "-"))
def model(request: pytest.FixtureRequest, make_model) -> Embedder:
    return make_model(**KINDS[request.param])


def slow(model: Embedder, texts: Sequence[str]) -> np.ndarray:
    """By definition: unpacked, padded attention, one expert after the other."""
    serving.unpack(model.encoder)
    model.encoder.attention_backend, model.encoder.moe_backend = "padded", "loop"
    with torch.no_grad():
        vectors = model(model.tokenizer.batch(texts)).vector_BM.float().numpy()
    del model.encoder.attention_backend, model.encoder.moe_backend
    return vectors


def test_packed_is_the_slow_backend(model: Embedder, texts: list[str]) -> None:
    packed = model.encode(texts)
    assert model.encoder.held
    np.testing.assert_allclose(packed, slow(model, texts), atol=2e-6)  # sums in another order


def test_packed_bfloat16_is_the_slow_backend(model: Embedder, texts: list[str], tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    exact = slow(model, texts)
    rounded = Embedder.from_pretrained(tmp_path / "m", dtype="bfloat16", device="cpu")
    assert (rounded.encode(texts) * exact).sum(1).min() > 0.999  # bf16 has 8 bits, and a router may flip


def test_int8_is_close(model: Embedder, texts: list[str], tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    rounded = Embedder.from_pretrained(tmp_path / "m", dtype="int8")
    assert (rounded.encode(texts) * slow(model, texts)).sum(1).min() > 0.99


def test_parameters_come_back_to_the_bit(model: Embedder, texts: list[str]) -> None:
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    model.encode(texts)
    held = {id(parameter) for parameter, _ in model.encoder.held}
    for name, parameter in model.encoder.named_parameters():
        assert parameter.shape == before[name].shape
        assert bool(parameter.isnan().all()) == (id(parameter) in held)
    packed = model.parts().state
    serving.unpack(model.encoder)
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(packed[name], before[name])


def test_a_model_that_served_trains(moe_model: Embedder, texts: list[str]) -> None:
    batch = moe_model.tokenizer.batch(texts)
    moe_model(batch).vector_BM.sum().backward()
    wanted = {name: parameter.grad for name, parameter in moe_model.named_parameters()}
    moe_model.zero_grad()
    moe_model.encode(texts)
    moe_model(batch).vector_BM.sum().backward()
    for name, parameter in moe_model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=0, atol=0)


def test_a_model_that_served_moves(moe_model: Embedder, texts: list[str]) -> None:
    expected = moe_model.encode(texts)
    moe_model.encoder.to(torch.float64).to(torch.float32)
    np.testing.assert_array_equal(moe_model.encode(texts), expected)


def test_a_model_that_served_can_be_copied(moe_model: Embedder, texts: list[str]) -> None:
    expected = moe_model.encode(texts)
    np.testing.assert_array_equal(copy.deepcopy(moe_model).encode(texts), expected)


def test_encoding_while_training_leaves_the_parameters_alone(moe_model: Embedder, texts: list[str]) -> None:
    moe_model.train()
    moe_model.encode(texts)
    assert not moe_model.encoder.held


def test_serving_does_not_change_the_space(moe_model: Embedder, texts: list[str]) -> None:
    before = moe_model.space_id()
    moe_model.encode(texts)
    assert moe_model.space_id() == before


class TestInt8:
    @pytest.fixture
    def rounded(self, moe_model: Embedder, tmp_path: Path) -> Embedder:
        moe_model.save_pretrained(tmp_path / "m")
        return Embedder.from_pretrained(tmp_path / "m", dtype="int8")

    def test_a_vector_depends_on_its_own_text_alone(self, rounded: Embedder, texts: list[str]) -> None:
        together = rounded.encode(texts)
        alone = np.stack([rounded.encode(text) for text in texts])
        np.testing.assert_allclose(together, alone, atol=1e-6)

    def test_is_a_space_of_its_own(self, rounded: Embedder, moe_model: Embedder) -> None:
        assert rounded.space_id() != moe_model.space_id()

    @pytest.mark.parametrize("use", ["save", "train"])
    def test_cannot_be_undone(self, rounded: Embedder, texts: list[str], tmp_path: Path, use: str) -> None:
        with pytest.raises(UserError, match="rounded to int8; load it with dtype='float32'"):
            rounded.save_pretrained(tmp_path / "x") if use == "save" else rounded(
                rounded.tokenizer.batch(texts)
            )

    def test_rows_of_zeros(self, rounded: Embedder) -> None:
        block = rounded.encoder.layers[0].ffn.packed
        assert bool(block(torch.zeros(3, rounded.dim)).isfinite().all())

    def test_needs_a_cpu(self, tmp_path: Path, moe_model: Embedder) -> None:
        moe_model.save_pretrained(tmp_path / "m")
        with pytest.raises(UserError, match="int8 needs a CPU"):
            Embedder.from_pretrained(tmp_path / "m", dtype="int8", device="cuda")
        with pytest.raises(UserError, match="float16 needs a GPU"):
            Embedder.from_pretrained(tmp_path / "m", dtype="float16", device="cpu")


@pytest.mark.parametrize("experts", [[0, 1, 2, 3, 3], [2, 2, 2, 2, 2], [1], [0, 3, 0, 3]], ids=str)
def test_lopsided_routing(moe_model: Embedder, experts: list[int]) -> None:
    """Empty experts, one token, all tokens to one expert."""
    block = moe_model.encoder.layers[1].ffn
    assert isinstance(block, MoE)
    hidden_TD = torch.randn(len(experts), moe_model.dim, generator=torch.Generator().manual_seed(0))
    expert_P = torch.tensor(experts)
    nothing = torch.zeros(())
    stats = RouterStats(
        1, len(experts), torch.bincount(expert_P, minlength=4), nothing, nothing, nothing, nothing
    )
    routing = Routing(torch.arange(len(experts)), expert_P, torch.rand(len(experts)), stats, nothing, nothing)
    with torch.inference_mode():
        wanted = ROADS["loop"](block, hidden_TD, routing)
        serving.pack(moe_model.encoder)
        torch.testing.assert_close(ROADS["packed"](block, hidden_TD, routing), wanted, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 5 * TILE))
def test_tiles_hold_every_row_once(rows: int) -> None:
    found = list(tiles(rows))
    assert [row for part, _ in found for row in range(part.start, part.stop)] == list(range(rows))
    assert all(part.stop - part.start <= computed <= TILE for part, computed in found)
    assert sum(computed for _, computed in found) <= rows * 2


def test_tiles_come_in_few_sizes() -> None:
    assert len({computed for rows in range(4 * TILE) for _, computed in tiles(rows)}) <= 32
