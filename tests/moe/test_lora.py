"""LoRA experts are experts whose matrices are a shared one and a product of two factors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from experts import HIDDEN, SAME, WIDTH, assert_one_value, make_moe, results, tokens
from moembed.moe.ffn import ACTIVATIONS
from moembed.moe.layer import MoE
from moembed.moe.lora import LoraSpec, whole
from moembed.moe.router import RouterConfig

LORA: dict[str, Any] = {"rank": 3, "alpha": 6.0}


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", ["each", "shared", "none"])
def test_the_output_is_the_sum_of_block_and_factors_token_by_token(gated: bool, bias: str) -> None:
    moe = make_moe(gated=gated, bias=bias, lora=LORA)
    hidden_TD = tokens(5)
    output_TD, _ = moe(hidden_TD, [5])

    def part(name: str, letters: str, expert: int, x: torch.Tensor) -> torch.Tensor:
        first, second = (p for n, p in moe.named_parameters() if n.startswith((f"{name}_A_", f"{name}_B_")))
        shared = moe.get_parameter(f"{name}_{letters}")
        added = linear(linear(x, first[expert]), second[expert])  # as LoRA computes it
        bias_O = moe.get_parameter(f"{name}_bias_{letters[0]}") if bias == "each" else 0
        return linear(x, shared) + 6.0 / 3 * added + bias_O

    for token in range(5):
        x = hidden_TD[token]
        best = (moe.router.weight_ED @ x).softmax(-1).topk(2)
        expected = moe.bias_D if bias == "shared" else torch.zeros(WIDTH)
        for weight, e in zip(best.values / best.values.sum(), best.indices.tolist(), strict=True):
            inner = part("up", "FD", e, x)
            act = ACTIVATIONS["gelu"]
            inner = act(part("gate", "FD", e, x)) * inner if gated else act(inner)
            expected = expected + weight * part("down", "DF", e, inner)
        torch.testing.assert_close(output_TD[token], expected, **SAME)


@pytest.mark.parametrize("backend", ["grouped", "grouped_mm"])
@pytest.mark.parametrize("kind", ["token_choice", "expert_choice"])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", ["each", "none"])
def test_a_backend_equals_the_loop_on_them(backend: str, kind: Any, gated: bool, bias: str) -> None:
    moe = make_moe(gated=gated, bias=bias, router=RouterConfig(kind=kind), lora=LORA)
    assert_one_value(moe, tokens(11), [2, 4, 5], backend)


def test_gradients_go_to_what_is_shared_and_to_the_factors() -> None:
    """Those of the full matrices, taken to the factors by the rule of the product."""
    moe, full = make_moe(lora=LORA), make_moe()
    lora = LoraSpec(**LORA)
    with torch.no_grad():
        full.router.weight_ED.copy_(moe.router.weight_ED)
        for part in moe.lora_parts:
            full.get_parameter(part.whole).copy_(whole(part, lora, moe.get_parameter))
            name = "up_bias_EF" if part.name == "up" else "down_bias_ED"
            full.get_parameter(name).copy_(moe.get_parameter(part.bias).expand(4, -1))
    mine, theirs = (results(block, tokens(9), [4, 5], "grouped") for block in (moe, full))
    for part in moe.lora_parts:
        grad_EOI, scale = theirs[part.whole], lora.alpha / lora.rank
        first, second = moe.get_parameter(part.first), moe.get_parameter(part.second)
        torch.testing.assert_close(mine[part.shared], grad_EOI.sum(0), rtol=1e-4, atol=1e-4)
        expected = scale * second.transpose(1, 2) @ grad_EOI
        torch.testing.assert_close(mine[part.first], expected, rtol=1e-4, atol=1e-4)
        expected = scale * grad_EOI @ first.transpose(1, 2)
        torch.testing.assert_close(mine[part.second], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine["input"], theirs["input"], **SAME)


def test_only_the_factors_are_parameters_of_experts() -> None:
    moe = make_moe(gated=True, lora=LORA)
    one_expert = 3 * 3 * (WIDTH + HIDDEN)
    assert moe.routed_parameters() == 4 * one_expert
    assert moe.idle_parameters() == 2 * one_expert
    total = sum(p.numel() for p in moe.parameters()) - moe.router.weight_ED.numel()
    assert total == 4 * one_expert + 3 * WIDTH * HIDDEN + 2 * HIDDEN + WIDTH


def test_it_trains_under_autocast() -> None:
    moe: MoE = make_moe(lora=LORA)
    with torch.autocast("cpu", torch.bfloat16):
        output_TD, _ = moe(tokens(5), [5])
        assert moe.experts.up_EFD.dtype == torch.float32
    torch.testing.assert_close(output_TD.float(), moe(tokens(5), [5])[0], rtol=0.05, atol=0.1)
