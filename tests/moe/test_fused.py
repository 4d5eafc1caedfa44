"""The Triton kernels give the output and the gradients of the loop, whatever the sizes."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts import assert_one_value, convert, make_moe, send_to_one, tokens
from moembed.moe.router import RouterConfig

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = pytest.mark.skipif(
    find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()),
    reason="needs triton, and a CUDA device or TRITON_INTERPRET=1",
)
BEYOND_ONE_BLOCK = {"width": 40, "hidden": 136}  # neither is a multiple of what one program reads or writes


@pytest.mark.parametrize("kind", ["token_choice", "expert_choice"])
@pytest.mark.parametrize("bias", ["each", "none"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])
def test_fused_equals_the_loop(kind: Any, bias: str, gated: bool, activation: str) -> None:
    router = RouterConfig(kind=kind)
    moe = make_moe(gated=gated, activation=activation, bias=bias, router=router, **BEYOND_ONE_BLOCK)
    hidden_TD = tokens(150, width=40).to(DEVICE)
    # fp32 sums of up to 300 rows, of which the largest are some hundreds
    assert_one_value(moe.to(DEVICE), hidden_TD, [20, 40, 90], "fused", relative=1e-5)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 200), st.data())
def test_fused_equals_the_loop_whatever_the_sizes(
    seed: int, experts: int, count: int, data: st.DataObject
) -> None:
    router = RouterConfig(top_k=data.draw(st.integers(1, experts)))
    moe = make_moe(seed, router=router, num_experts=experts).to(DEVICE)
    assert_one_value(moe, tokens(count, seed).to(DEVICE), [count], "fused", relative=1e-5)


@pytest.mark.parametrize("count", [1, 128, 129])
def test_all_tokens_to_one_expert(count: int) -> None:
    moe = make_moe(router=RouterConfig(top_k=1))
    send_to_one(moe, 2)
    assert_one_value(moe.to(DEVICE), tokens(count).abs().to(DEVICE), [count], "fused", relative=1e-5)


@pytest.mark.parametrize("gated", [False, True])
def test_half_precision(gated: bool) -> None:
    """In fp16: Triton's interpreter cannot multiply bf16."""
    moe = convert(make_moe(gated=gated, **BEYOND_ONE_BLOCK), torch.float16, DEVICE)
    hidden_TD = tokens(150, width=40).to(DEVICE, torch.float16)
    assert_one_value(moe, hidden_TD, [150], "fused", relative=0.005)  # it keeps 11 bits


def test_a_token_that_no_expert_chose_gets_nothing() -> None:
    moe = make_moe(router=RouterConfig(kind="expert_choice", top_k=1), bias="none")
    with torch.no_grad():
        moe.router.weight_ED.copy_(moe.router.weight_ED[:1].expand(4, -1))  # all experts want the same two
    hidden_TD = tokens(8).to(DEVICE)
    output_TD, _ = moe.to(DEVICE)(hidden_TD, [8], "fused")
    assert int(output_TD.ne(0).any(1).sum()) == 2


def test_without_gradients_nothing_is_kept_for_them() -> None:
    moe, hidden_TD = make_moe().to(DEVICE), tokens(5).to(DEVICE)
    with torch.no_grad():
        output_TD, _ = moe(hidden_TD, [5], "fused")
    assert output_TD.grad_fn is None
    torch.testing.assert_close(output_TD, moe(hidden_TD, [5], "fused")[0].detach(), rtol=0, atol=0)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=6))
def test_tiles_hold_every_pair_of_an_expert_once(counts: list[int]) -> None:
    from moembed.moe.triton_kernels import ROWS, Tiles

    end_E = torch.tensor(counts).cumsum(0, dtype=torch.int32)
    tiles = Tiles.of(end_E, sum(counts))
    found = []
    for expert, first, end in zip(
        *(x.tolist() for x in (tiles.expert_N, tiles.first_N, tiles.end_N)), strict=True
    ):
        found += [(expert, pair) for pair in range(first, min(first + ROWS, end))]
    assert found == [
        (expert, pair)
        for expert, (end, count) in enumerate(zip(end_E.tolist(), counts, strict=True))
        for pair in range(end - count, end)
    ]
