"""Experts that are averaged for every text: the formula, its gradients, and texts that stay apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import MakeModel
from experts import SAME, assert_one_value, make_moe, results, tokens
from moembed.config import validate
from moembed.embedder import Embedder
from moembed.export.nomic import to_nomic
from moembed.export.onnx.computed import require_computed
from moembed.families.flat import FlatMoE
from moembed.losses.balance import balance_loss
from moembed.moe import merging
from moembed.moe.layer import MoE, MoESpec
from moembed.moe.router_config import RouterConfig
from moembed.token_experts import token_experts
from moembed.types import UserError
from moembed.weights.upcycle import UpcycleConfig, upcycle

ROUTER = RouterConfig(kind="soft_merging")
lengths = st.lists(st.integers(1, 6), min_size=1, max_size=4)


def by_hand(moe: MoE, hidden_TD: Tensor, length_B: list[int]) -> Tensor:
    """One dense block for every text, whose weights are the average."""
    outputs = []
    for own_SD in hidden_TD.split(length_B):
        prob_E = (moe.router.weight_ED @ own_SD.mean(0)).softmax(-1)

        def average(tensor: Tensor, prob_E: Tensor = prob_E) -> Tensor:
            return torch.einsum("e,e...->...", prob_E, tensor)

        inner = own_SD @ average(moe.up_EFD).T + average(moe.up_bias_EF)
        if moe.gate_EFD is not None:
            gate = own_SD @ average(moe.gate_EFD).T + average(moe.gate_bias_EF)
            inner = torch.nn.functional.gelu(gate) * inner
        else:
            inner = torch.nn.functional.gelu(inner)
        outputs.append(inner @ average(moe.down_EDF).T + average(moe.down_bias_ED))
    return torch.cat(outputs)


def gradients(moe: MoE, hidden_TD: Tensor, output_TD: Tensor) -> list[Tensor]:
    weight_TD = torch.linspace(-1, 1, output_TD.numel()).view_as(output_TD)
    return list(torch.autograd.grad((output_TD * weight_TD).sum(), [hidden_TD, *moe.parameters()]))


@settings(max_examples=30)
@given(st.integers(0, 10**6), lengths, st.booleans())
def test_a_text_meets_the_average_of_the_experts(seed: int, length_B: list[int], gated: bool) -> None:
    """Outputs and gradients, the router's included, though the averages are made again for backward."""
    moe, hidden_TD = make_moe(seed, gated, router=ROUTER), tokens(sum(length_B), seed).requires_grad_()
    found, expected = moe(hidden_TD, length_B)[0], by_hand(moe, hidden_TD, length_B)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    pairs = zip(gradients(moe, hidden_TD, found), gradients(moe, hidden_TD, expected), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_how_many_texts_are_averaged_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    moe, hidden_TD, length_B = make_moe(router=ROUTER), tokens(12), [1, 2, 2, 3, 4]
    expected = results(moe, hidden_TD, length_B, "loop")
    monkeypatch.setattr(merging, "TEXTS", 2)
    for name, tensor in results(moe, hidden_TD, length_B, "loop").items():
        torch.testing.assert_close(tensor, expected[name], **SAME)


@pytest.mark.parametrize("backend", ["grouped", "grouped_mm"])
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_every_backend_computes_averages(backend: str, lora: Any) -> None:
    moe = make_moe(router=ROUTER, num_shared_experts=1, lora=lora)
    assert_one_value(moe, tokens(11), [2, 4, 5], backend)


def test_equal_experts_have_themselves_as_average_and_all_are_active(
    make_model: MakeModel, texts: list[str]
) -> None:
    dense = make_model()
    parts = dense.parts()
    spec, state = upcycle(parts.spec, parts.state, UpcycleConfig(num_experts=4, router=ROUTER))
    model = Embedder(type(parts)(spec, state, parts.tokenizer, parts.pooling, source=parts.source)).eval()
    assert np.abs(model.encode(texts) - dense.encode(texts)).max() < 1e-5
    assert model.num_parameters(active=True) == model.num_parameters()


def soft_model(make_model: MakeModel, **changes: Any) -> Embedder:
    return make_model(moe=FlatMoE(layers=(1, 3), num_experts=4, router=ROUTER), **changes)


def test_served_and_stored_a_text_is_itself_whatever_its_batch_mates(
    make_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    model = soft_model(make_model)
    vectors = model.encode(texts)
    for text, vector in zip(texts, vectors, strict=True):
        assert np.abs(model.encode([text])[0] - vector).max() < 1e-6
    with torch.no_grad():  # as in training, padded rows behind the texts
        rows, _ = model.tokenizer.rows(texts[:1])
        states, stats = model.encoder.train()(torch.tensor(rows[0]), [len(rows[0])])
    pooled_D = states[4].mean(0)
    assert np.abs((pooled_D / pooled_D.norm()).numpy() - vectors[0]).max() < 1e-5
    assert len(stats) == 2
    model.eval().save_pretrained(tmp_path / "soft")
    again = Embedder.from_pretrained(tmp_path / "soft", device="cpu")
    assert again.encoder.spec == model.encoder.spec
    assert (again.encode(texts) == vectors).all()
    rounded = Embedder.from_pretrained(tmp_path / "soft", device="cpu", dtype="int8")
    assert (rounded.encode(texts) * vectors).sum(1).min() > 0.98
    told = token_experts(model, texts[0])
    assert [layer.layer for layer in told.layers] == [1, 3]
    for layer in told.layers:
        assert all(sorted(experts) == [0, 1, 2, 3] for experts in layer.experts)
        assert all(weights == layer.weights[0] for weights in layer.weights)  # of the text
        assert sum(layer.weights[0]) == pytest.approx(1, abs=1e-5)


def test_the_balance_loss_says_nothing_to_it() -> None:
    moe = make_moe(router=ROUTER)
    _, stats = moe(tokens(9), [4, 5])
    loss = balance_loss([stats], [stats.detach()])
    assert float(loss.detach()) == pytest.approx(1, abs=1e-5)
    (grad_ED,) = torch.autograd.grad(loss, moe.router.weight_ED)
    assert grad_ED.abs().max() < 1e-6


def test_formats_without_it_refuse_it_by_name(make_model: MakeModel) -> None:
    parts = soft_model(make_model, position="rope").parts()
    with pytest.raises(UserError, match="a router of kind soft_merging"):
        to_nomic(parts)
    with pytest.raises(UserError, match=r"router\.kind = 'soft_merging'"):
        require_computed(parts.spec)


@pytest.mark.parametrize(
    ("schema", "values", "told"),
    [
        (RouterConfig, {"kind": "soft_merging", "top_k": 2}, "top_k is for routers that choose"),
        (RouterConfig, {"kind": "soft_merging", "capacity_factor": 1.0}, "not for soft_merging"),
        (RouterConfig, {"kind": "soft_merging", "selection_bias": True}, "selection_bias is for"),
        (MoESpec, {"router": {"kind": "soft_merging"}, "shared_weight": "mean"}, "take sum"),
    ],
)
def test_what_means_nothing_to_it_is_refused(schema: Any, values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        validate(schema, values)
    assert RouterConfig.model_validate(ROUTER.model_dump()) == ROUTER
    assert MoESpec(num_experts=1, router=ROUTER).experts_per_token == 1
