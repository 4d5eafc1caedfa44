"""Experts cut into parts are the same function, whatever they are; then each part learns for itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import MakeModel
from experts import HIDDEN, WIDTH, make_moe, tokens
from moembed.config import validate
from moembed.embedder import Embedder
from moembed.export.nomic import to_nomic
from moembed.export.onnx.export import export_onnx
from moembed.model.attention import AttentionSpec
from moembed.model.block import LayerSpec
from moembed.moe.ffn import FeedForwardSpec
from moembed.moe.layer import MoE, MoESpec
from moembed.moe.router import RouterConfig
from moembed.types import UserError
from moembed.weights.fine_grained import split_experts, split_layer
from moembed.weights.upcycle import UpcycleConfig, upcycle

SAME = {"rtol": 1e-4, "atol": 1e-4}  # sums over s times as many pairs


def cut(moe: MoE, spec: MoESpec, gated: bool, parts: int) -> MoE:
    attention = AttentionSpec(num_heads=1, num_kv_heads=1, head_size=WIDTH)
    whole = LayerSpec(attention=attention, ffn=FeedForwardSpec(width=HIDDEN, gated=gated), moe=spec)
    layer = split_layer(whole, parts)
    assert layer.moe is not None
    fine = MoE(WIDTH, layer.ffn, layer.moe, layer=0)
    state = {name: tensor.detach() for name, tensor in moe.named_parameters()}
    fine.load_state_dict(split_experts(state, parts, spec.router.normalize))
    return fine.eval()


@given(
    st.integers(0, 10**6),
    st.sampled_from([2, 4, 8]),
    st.sampled_from(["token_choice", "expert_choice", "centroid"]),
    st.sampled_from([None, 1.0, 2.0]),
    st.sampled_from(["each", "shared", "none"]),
    st.booleans(),
    st.integers(0, 2),
)
def test_the_parts_of_experts_are_those_experts(
    seed: int, parts: int, kind: Any, normalize: float | None, bias: Any, gated: bool, shared: int
) -> None:
    """Of any experts, not only of copies: outputs, and gradients of the input."""
    router = RouterConfig(kind=kind, top_k=2, normalize=normalize)
    spec = MoESpec(num_experts=4, num_shared_experts=shared, bias=bias, router=router)
    moe = make_moe(seed, gated, router=router, bias=bias, num_shared_experts=shared)
    fine = cut(moe, spec, gated, parts)
    assert (len(fine.up_EFD), fine.router.config.top_k) == (4 * parts, 2 * parts)
    # each expert takes 2 of the 4 tokens of every text, each of its parts too
    found, expected = (values(block, tokens(8, seed)) for block in (fine, moe))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **SAME)
    assert fine.routed_parameters() - moe.routed_parameters() == (4 * (parts - 1) * WIDTH) * (bias == "each")
    if bias != "each":
        assert fine.idle_parameters() == moe.idle_parameters()


def values(moe: MoE, hidden_TD: Tensor) -> tuple[Tensor, Tensor]:
    hidden_TD = hidden_TD.requires_grad_()
    output_TD, _ = moe(hidden_TD, [4, 4])
    weight_TD = torch.linspace(-1, 1, output_TD.numel()).view_as(output_TD)
    return output_TD.detach(), torch.autograd.grad((output_TD * weight_TD).sum(), hidden_TD)[0]


def test_the_parts_of_an_expert_get_gradients_of_their_own() -> None:
    spec = MoESpec(num_experts=4)
    fine = cut(make_moe(), spec, False, 2)
    output_TD, _ = fine(tokens(8), [8])
    weight_TD = torch.linspace(-1, 1, output_TD.numel()).view_as(output_TD)
    (output_TD * weight_TD).sum().backward()
    grad_ED = fine.router.weight_ED.grad
    assert torch.equal(fine.router.weight_ED[0::2], fine.router.weight_ED[1::2])
    assert (grad_ED[0::2] - grad_ED[1::2]).abs().amax(1).gt(1e-4).all()


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("gated", [True, False])
def test_an_upcycled_model_keeps_its_vectors_and_is_saved(
    every: int, gated: bool, make_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    dense = make_model(gated=gated)
    parts = dense.parts()
    options = UpcycleConfig(num_experts=4, every=every, granularity=3, num_shared_experts=1)
    spec, state = upcycle(parts.spec, parts.state, options)
    model = Embedder(replace(parts, spec=spec, state=state)).eval()
    assert np.abs(model.encode(texts) - dense.encode(texts)).max() < 1e-5
    assert spec.moe is not None
    assert (spec.moe.num_experts, spec.moe.router.top_k, spec.moe.num_shared_experts) == (12, 6, 3)
    assert {layer.ffn.width for layer in spec.layers if layer.moe} == {8}
    assert {layer.ffn.width for layer in spec.layers if not layer.moe} <= {24}
    model.save_pretrained(tmp_path / "moe")
    again = Embedder.from_pretrained(tmp_path / "moe", device="cpu")
    assert again.encoder.spec == spec
    assert (again.encode(texts) == model.encode(texts)).all()


def test_the_onnx_graph_of_it_gives_its_vectors(make_model: MakeModel, tmp_path: Path) -> None:
    parts = make_model(num_layers=2).parts()
    spec, state = upcycle(parts.spec, parts.state, UpcycleConfig(num_experts=2, granularity=2))
    told = export_onnx(replace(parts, spec=spec, state=state), tmp_path / "onnx")
    assert told["max_error"] < 1e-5


def test_one_part_is_the_whole_bit_for_bit(make_model: MakeModel) -> None:
    parts = make_model().parts()
    plain, state = upcycle(parts.spec, parts.state, UpcycleConfig())
    spec, same = upcycle(parts.spec, parts.state, UpcycleConfig(granularity=1))
    assert spec == plain == plain.with_layers(lambda _, layer: split_layer(layer, 1))
    assert all(torch.equal(same[name], tensor) for name, tensor in state.items())
    assert split_experts(state, 1, 1.0) is state


def test_layers_of_different_width_are_refused_by_the_nomic_layout(make_model: MakeModel) -> None:
    parts = make_model(position="rope", gated=False).parts()
    options = UpcycleConfig.published().model_copy(update={"granularity": 2})
    spec, state = upcycle(parts.spec, parts.state, options)
    with pytest.raises(UserError, match=r"cannot hold this model: .*ffn\.width = 12"):
        to_nomic(replace(parts, spec=spec, state=state))


def test_what_cannot_be_cut_is_refused(make_model: MakeModel) -> None:
    parts = make_model().parts()
    with pytest.raises(UserError, match="granularity 5 does not divide the hidden width 24"):
        upcycle(parts.spec, parts.state, UpcycleConfig(granularity=5))
    for kind in ({"kind": "hash"}, {"kind": "tag", "tags": ["de", "en"], "top_k": 1}):
        with pytest.raises(UserError, match="does not learn: take token_choice"):
            validate(UpcycleConfig, {"granularity": 2, "router": kind})
