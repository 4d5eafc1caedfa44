"""Every backend gives the output and the gradients of the loop; experts are interchangeable."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experts import HIDDEN, SAME, WIDTH, assert_one_value, convert, make_moe, results, send_to_one, tokens
from moembed.moe import tiles
from moembed.moe.ffn import ACTIVATIONS, FeedForward, FeedForwardSpec
from moembed.moe.layer import MoE, MoESpec
from moembed.moe.router import RouterConfig

lengths = st.lists(st.integers(1, 6), min_size=1, max_size=4)
every_backend = pytest.mark.parametrize("backend", ["grouped", "grouped_mm"])


@every_backend
@pytest.mark.parametrize("kind", ["token_choice", "expert_choice"])
@pytest.mark.parametrize("normalize", [None, 1.0, 2.0])
@pytest.mark.parametrize("bias", ["each", "shared", "none"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shared", [0, 2])
def test_a_backend_equals_the_loop(
    backend: str, kind: Any, normalize: float | None, bias: str, gated: bool, shared: int
) -> None:
    router = RouterConfig(kind=kind, top_k=2, normalize=normalize)
    moe = make_moe(gated=gated, router=router, bias=bias, num_shared_experts=shared)
    assert_one_value(moe, tokens(11), [2, 4, 5], backend)


@every_backend
@given(st.integers(0, 10**6), st.integers(1, 5), lengths, st.data())
def test_a_backend_equals_the_loop_whatever_the_sizes(
    backend: str, seed: int, experts: int, length_B: list[int], data: st.DataObject
) -> None:
    router = RouterConfig(
        kind=data.draw(st.sampled_from(["token_choice", "expert_choice"])),
        top_k=data.draw(st.integers(1, experts)),
    )
    moe = make_moe(seed, router=router, num_experts=experts)
    assert_one_value(moe, tokens(sum(length_B), seed), length_B, backend)


@pytest.mark.parametrize("largest", [(), (2048, 1024)])  # without AMX, with it
def test_tiles_of_every_size_give_what_the_loop_gives(
    largest: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "SIZES", (*largest, 512, 256, 128, 64, 32))
    assert [part.stop - part.start for part in tiles.tiles(slice(0, 4064))][: len(largest)] == [*largest]
    moe = make_moe(router=RouterConfig(top_k=1))
    send_to_one(moe, 2)
    # gradients of weights are sums over all tokens, in another order
    assert_one_value(moe, tokens(4050).abs(), [4050], "grouped", relative=1e-5)


@every_backend
@pytest.mark.parametrize("count", [1, 6])
def test_all_tokens_to_one_expert_leaves_the_others_a_zero_gradient(backend: str, count: int) -> None:
    moe = make_moe(router=RouterConfig(top_k=1))
    send_to_one(moe, 2)
    hidden_TD = tokens(count).abs()
    _, stats = moe(hidden_TD, [count])
    assert stats.count_E.tolist() == [0, 0, count, 0]
    assert_one_value(moe, hidden_TD, [count], backend)
    gradient_EFD = results(moe, hidden_TD, [count], backend)["up_EFD"]
    assert gradient_EFD[2].ne(0).any()
    assert gradient_EFD[[0, 1, 3]].eq(0).all()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])
def test_the_output_equals_the_formula_token_by_token(gated: bool, activation: str) -> None:
    moe = make_moe(gated=gated, activation=activation, bias="each", num_shared_experts=1)
    hidden_TD = tokens(5)
    output_TD, _ = moe(hidden_TD, [5])
    for token in range(5):
        x = hidden_TD[token]
        prob = (moe.router.weight_ED @ x).softmax(-1)
        best = prob.topk(2)
        expected = moe.shared(x)
        for weight, e in zip(best.values / best.values.sum(), best.indices, strict=True):
            inner = moe.up_EFD[e] @ x + moe.up_bias_EF[e]
            if gated:
                inner = ACTIVATIONS[activation](moe.gate_EFD[e] @ x + moe.gate_bias_EF[e]) * inner
            else:
                inner = ACTIVATIONS[activation](inner)
            expected = expected + weight * (moe.down_EDF[e] @ inner + moe.down_bias_ED[e])
        torch.testing.assert_close(output_TD[token], expected, **SAME)


def test_the_shared_bias_is_added_once() -> None:
    moe = make_moe(bias="shared", router=RouterConfig(top_k=3, normalize=None))
    hidden_TD = tokens(5)
    before, _ = moe(hidden_TD, [5])
    with torch.no_grad():
        moe.bias_D += 1.0
    torch.testing.assert_close(moe(hidden_TD, [5])[0], before + 1.0, **SAME)


@pytest.mark.parametrize("top_k", [1, 3])
def test_the_mean_weighs_k_routed_experts_and_one_shared_block(top_k: int) -> None:
    moe = make_moe(bias="shared", router=RouterConfig(top_k=top_k), num_shared_experts=2)
    hidden_TD = tokens(5)
    shared_TD = moe.shared(hidden_TD)
    routed_TD = moe(hidden_TD, [5])[0] - shared_TD
    moe.shared_weight = "mean"
    expected_TD = (top_k * routed_TD + shared_TD) / (top_k + 1)
    torch.testing.assert_close(moe(hidden_TD, [5])[0], expected_TD, **SAME)


@pytest.mark.parametrize("weight", ["sum", "mean"])
def test_shared_experts_train_under_autocast(weight: str) -> None:
    moe = make_moe(num_shared_experts=1, shared_weight=weight)
    with torch.autocast("cpu", torch.bfloat16):
        output_TD, _ = moe(tokens(5), [5])
    torch.testing.assert_close(output_TD.float(), moe(tokens(5), [5])[0], rtol=0.05, atol=0.1)


@every_backend
@pytest.mark.parametrize("gated", [False, True])
def test_a_backend_trains_under_autocast(backend: str, gated: bool) -> None:
    """fp32 weights, bf16 products: what it gives is that of the loop to the precision of bf16."""
    moe, hidden_TD = make_moe(gated=gated, bias="none"), tokens(9)
    with torch.autocast("cpu", torch.bfloat16):
        assert_one_value(moe, hidden_TD, [9], backend, relative=0.02)  # it keeps 8 bits
    assert moe(hidden_TD, [9], backend)[0].dtype == torch.float32


@given(st.permutations(range(4)), st.sampled_from(["token_choice", "expert_choice"]))
def test_permuting_the_experts_changes_nothing(order: list[int], kind: Any) -> None:
    moe = make_moe(gated=True, router=RouterConfig(kind=kind))
    hidden_TD = tokens(7)
    before, _ = moe(hidden_TD, [3, 4])
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.copy_(parameter[order])
    torch.testing.assert_close(moe(hidden_TD, [3, 4])[0], before, **SAME)


@pytest.mark.parametrize("normalize", [None, 1.0])
@pytest.mark.parametrize("kind", ["token_choice", "expert_choice"])
@pytest.mark.parametrize("gated", [False, True])
def test_one_expert_is_the_dense_block(kind: Any, gated: bool, normalize: float | None) -> None:
    """The softmax over one expert is 1, whatever the router says."""
    moe = make_moe(gated=gated, num_experts=1, router=RouterConfig(kind=kind, top_k=1, normalize=normalize))
    dense = FeedForward(WIDTH, FeedForwardSpec(width=HIDDEN, gated=gated))
    parts = {"up": "EFD", "gate": "EFD", "down": "EDF"} if gated else {"up": "EFD", "down": "EDF"}
    state = {f"{part}.weight": getattr(moe, f"{part}_{shape}")[0] for part, shape in parts.items()}
    state |= {f"{part}.bias": getattr(moe, f"{part}_bias_{shape[:2]}")[0] for part, shape in parts.items()}
    dense.load_state_dict(state)
    hidden_TD = tokens(6)
    torch.testing.assert_close(moe(hidden_TD, [2, 4])[0], dense(hidden_TD), **SAME)


def test_a_token_no_expert_chose_passes_through_with_the_shared_part_alone() -> None:
    moe = make_moe(router=RouterConfig(kind="expert_choice", top_k=1), bias="each", num_shared_experts=1)
    hidden_TD = tokens(8)
    with torch.no_grad():
        moe.router.weight_ED.copy_(moe.router.weight_ED[:1].expand(4, -1))  # all experts want the same two
    chosen = set(moe.router(hidden_TD, [8]).token_P.tolist())
    left = [token for token in range(8) if token not in chosen]
    assert left
    output_TD, _ = moe(hidden_TD, [8])
    torch.testing.assert_close(output_TD[left], moe.shared(hidden_TD)[left], **SAME)


@pytest.mark.parametrize("backend", ["loop", "grouped", "grouped_mm"])
def test_half_precision_stays_half_precision(backend: str) -> None:
    moe = convert(make_moe(), torch.bfloat16)
    output_TD, _ = moe(tokens(5).bfloat16(), [5], backend)
    assert output_TD.dtype == torch.bfloat16
    expected, _ = make_moe()(tokens(5), [5], backend)
    # bf16 keeps 8 bits, and three matrix products round on the way
    torch.testing.assert_close(output_TD.float(), expected, rtol=0.05, atol=0.1)


def test_idle_parameters_are_those_of_the_experts_a_token_skips() -> None:
    one_expert = 3 * WIDTH * HIDDEN + 2 * HIDDEN + WIDTH
    moe = make_moe(gated=True, router=RouterConfig(top_k=1), num_shared_experts=1)
    assert moe.idle_parameters() == 3 * one_expert


def test_more_chosen_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="top_k 3 is more than num_experts 2"):
        MoESpec(num_experts=2, router=RouterConfig(top_k=3))


@pytest.mark.parametrize("gated", [True, False])
def test_the_distance_of_experts_is_that_of_all_their_pairs(gated: bool) -> None:
    ffn, spec = FeedForwardSpec(width=6, gated=gated), MoESpec(num_experts=4)
    moe = MoE(5, ffn, spec, layer=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(1.0, 0.5, generator=generator)
    values = [
        torch.cat([tensor.detach()[e].flatten() for tensor in moe.experts.tensors()]).double()
        for e in range(4)
    ]
    pairs = [float((a - b).square().sum()) for i, a in enumerate(values) for b in values[:i]]
    mean_square = sum(float(value.square().sum()) for value in values) / 4
    expected = (sum(pairs) / len(pairs) / mean_square) ** 0.5
    assert moe.experts.distance() == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        for tensor in moe.experts.tensors():
            tensor.copy_(tensor[:1].expand_as(tensor))
    assert moe.experts.distance() == pytest.approx(0, abs=1e-6)
