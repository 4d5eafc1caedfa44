"""Upcycling keeps the function; the published way changes it exactly as its description says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import HfFolder, MakeModel
from moembed.embedder import Embedder
from moembed.families.registry import family_to_write
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.moe.layer import MoE
from moembed.moe.router import RouterConfig
from moembed.types import UserError
from moembed.weights.upcycle import UpcycleConfig, upcycle

EQUAL = 1e-5  # weights of a token sum to 1 within fp32 rounding; vectors have length 1
KEEPING: dict[str, UpcycleConfig] = {
    "defaults": UpcycleConfig(),
    "every layer": UpcycleConfig(every=1, num_experts=3),
    "one expert": UpcycleConfig(num_experts=1, router=RouterConfig(top_k=1, normalize=None)),
    "all experts": UpcycleConfig(num_experts=4, router=RouterConfig(top_k=4, normalize=None)),
    "shared experts": UpcycleConfig(num_shared_experts=2),
    "flat router": UpcycleConfig(router_std=0.0),
    "sharp router": UpcycleConfig(router_std=5.0, router=RouterConfig(top_k=3)),
}


def upcycled(parts: Parts, options: UpcycleConfig) -> Embedder:
    spec, state = upcycle(parts.spec, parts.state, options)
    return Embedder(replace(parts, spec=spec, state=state)).eval()


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


@pytest.mark.parametrize("options", KEEPING.values(), ids=KEEPING)
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "nomic_bert"])
def test_every_family_keeps_its_vectors(
    kind: str, options: UpcycleConfig, hf_folder: HfFolder, texts: list[str]
) -> None:
    parts = read_folder(hf_folder(kind)[0])
    dense = Embedder(parts).eval().encode(texts)
    assert distance(upcycled(parts, options).encode(texts), dense) <= EQUAL


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("ffn_bias", [True, False])
def test_gates_and_biases_are_carried(
    gated: bool, ffn_bias: bool, make_model: MakeModel, texts: list[str]
) -> None:
    dense = make_model(gated=gated, ffn_bias=ffn_bias)
    model = upcycled(dense.parts(), UpcycleConfig(num_shared_experts=1))
    assert model.encoder.spec.moe is not None
    assert model.encoder.spec.moe.bias == ("each" if ffn_bias else "none")
    assert distance(model.encode(texts), dense.encode(texts)) <= EQUAL


def test_minilm_keeps_its_vectors(minilm: Path, texts: list[str]) -> None:
    parts = read_folder(minilm)
    dense = Embedder(parts).eval().encode(texts)
    assert distance(upcycled(parts, UpcycleConfig(num_experts=4)).encode(texts), dense) <= EQUAL


def test_saved_and_loaded_it_is_the_same_model(
    make_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    model = upcycled(make_model(gated=True).parts(), UpcycleConfig(num_shared_experts=1))
    model.save_pretrained(tmp_path / "moe")
    again = Embedder.from_pretrained(tmp_path / "moe", device="cpu")
    assert distance(again.encode(texts), model.encode(texts)) <= EQUAL
    assert again.space() == model.space()


@pytest.mark.parametrize(("every", "layers"), [(1, (0, 1, 2, 3)), (2, (1, 3)), (3, (1,)), (5, (1,))])
def test_every_nth_layer_is_converted(every: int, layers: tuple[int, ...], make_model: MakeModel) -> None:
    model = upcycled(make_model().parts(), UpcycleConfig(every=every))
    assert model.encoder.spec.moe_layers == layers
    converted = [i for i, block in enumerate(model.encoder.layers) if isinstance(block.ffn, MoE)]
    assert tuple(converted) == layers


def test_the_input_is_left_alone_and_nothing_converted_is_shared(make_model: MakeModel) -> None:
    parts = make_model().parts()
    before = {name: tensor.clone() for name, tensor in parts.state.items()}
    spec, state = upcycle(parts.spec, parts.state, UpcycleConfig(num_shared_experts=1))
    assert parts.spec.moe is None
    assert parts.state.keys() == before.keys()
    for name, tensor in state.items():
        if ".ffn." in name and name not in before:
            tensor.add_(1)
    assert all(torch.equal(parts.state[name], tensor) for name, tensor in before.items())
    assert family_to_write(spec, {"model_type": "bert"}).name == "moembed"


@pytest.mark.parametrize("experts", [100_000, 10**12])
def test_experts_that_no_memory_holds_are_refused_with_their_bytes(experts: int, minilm: Path) -> None:
    parts = read_folder(minilm)
    told = (
        f"^{experts:,} experts in 3 layers make a model of [0-9,]+ bytes, but this machine has a memory of "
    )
    with pytest.raises(UserError, match=told):
        upcycle(parts.spec, parts.state, UpcycleConfig(num_experts=experts))
    with pytest.raises(UserError, match="no machine holds a model of these sizes"):
        upcycle(parts.spec, parts.state, UpcycleConfig(num_experts=10**17))


def test_the_router_alone_depends_on_the_seed(make_model: MakeModel) -> None:
    parts = make_model().parts()
    first, again, other = (
        upcycle(parts.spec, parts.state, UpcycleConfig(seed=seed, router_std=0.5))[1] for seed in (1, 1, 2)
    )
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, other[name]) == (not name.endswith("router.weight_ED")), name
    assert float(first["layers.1.ffn.router.weight_ED"].std()) == pytest.approx(0.5, rel=0.2)


def test_experts_are_copies_and_shared_ones_silent(make_model: MakeModel) -> None:
    parts = make_model(gated=True).parts()
    _, state = upcycle(parts.spec, parts.state, UpcycleConfig(num_experts=3, num_shared_experts=2))
    prefix = "layers.1.ffn."
    for part, shape in (("up", "EFD"), ("gate", "EFD"), ("down", "EDF")):
        for expert in range(3):
            assert torch.equal(
                state[f"{prefix}{part}_{shape}"][expert], parts.state[f"{prefix}{part}.weight"]
            )
            bias_EF = state[f"{prefix}{part}_bias_{shape[:2]}"]
            assert torch.equal(bias_EF[expert], parts.state[f"{prefix}{part}.bias"])
    assert state[f"{prefix}shared.down.weight"].eq(0).all()
    assert state[f"{prefix}shared.down.bias"].eq(0).all()
    up, dense_up = state[f"{prefix}shared.up.weight"], parts.state[f"{prefix}up.weight"]
    assert torch.equal(up, torch.cat([dense_up, dense_up]))  # not zero too, or it could never learn


# ---- the published way ---------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [False, True])
def test_published_block_is_the_mass_of_its_experts_times_the_block_without_biases(
    gated: bool, make_model: MakeModel
) -> None:
    dense = make_model(gated=gated)
    model = upcycled(dense.parts(), UpcycleConfig.published())
    moe, block = model.encoder.layers[1].ffn, dense.encoder.layers[1].ffn
    hidden_TD = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        prob_TE = (hidden_TD @ moe.router.weight_ED.T).softmax(-1)
        mass_T = prob_TE.topk(2, dim=-1).values.sum(-1)
        output_TD, _ = moe(hidden_TD, [4, 5])
        torch.testing.assert_close(output_TD, mass_T[:, None] * block(hidden_TD), rtol=1e-5, atol=1e-5)
    assert moe.bias_D.eq(0).all()
    assert moe.up_bias_EF is moe.gate_bias_EF is moe.down_bias_ED is None


def test_published_model_with_a_flat_router_is_the_dense_one_at_a_quarter(
    make_model: MakeModel, texts: list[str]
) -> None:
    """Two of eight equal probabilities sum to 1/4, in the converted layers only."""
    options = UpcycleConfig.published().model_copy(update={"router_std": 0.0})
    dense = make_model()
    model = upcycled(dense.parts(), options)
    with torch.no_grad():
        for layer in (1, 3):
            block = dense.encoder.layers[layer].ffn
            block.up.bias.zero_()
            block.down.bias.zero_()
            block.down.weight.mul_(0.25)
    assert distance(model.encode(texts), dense.encode(texts)) <= EQUAL


def test_published_settings() -> None:
    options = UpcycleConfig.published()
    router = options.router
    assert (options.num_experts, options.every, options.router_std) == (8, 2, 0.02)
    assert (router.kind, router.top_k, router.normalize, router.jitter) == ("token_choice", 2, None, 0.0)
    assert options.bias == "shared"


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "complaint"),
    [
        ({"moe": {"layers": [1]}}, {}, "has experts already"),
        ({"num_layers": 1}, {}, "every = 2 upcycles no layer of a model of 1 layers"),
        ({}, {"num_experts": 1}, "upcycle: .*top_k 2 is more than num_experts 1"),
    ],
)
def test_what_cannot_be_upcycled_is_refused(
    model: dict[str, Any], options: dict[str, Any], complaint: str, make_model: MakeModel
) -> None:
    parts = make_model(**model).parts()
    with pytest.raises(UserError, match=complaint):
        upcycle(parts.spec, parts.state, UpcycleConfig(**options))
