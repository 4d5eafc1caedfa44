"""Both routers against their definition written as loops, and what they report against a hand count."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moembed.moe.router import Router, RouterConfig
from moembed.moe.router_kinds import expert_choice, token_choice
from moembed.packing import offsets
from moembed.types import RouterStats

WIDTH = 6
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def make_router(num_experts: int = 4, seed: int = 0, **options: Any) -> Router:
    router = Router(WIDTH, num_experts, RouterConfig(**options), layer=3).eval()
    with torch.no_grad():
        router.weight_ED.normal_(generator=torch.Generator().manual_seed(seed))
    return router


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed + 1000))


def pairs(token_P: Tensor, expert_P: Tensor) -> list[tuple[int, int]]:
    return sorted(zip(token_P.tolist(), expert_P.tolist(), strict=True))


# ---- who sees whom -------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 5), st.data())
def test_every_token_takes_its_most_probable_experts(
    seed: int, count: int, experts: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts))
    prob_TE = torch.rand(count, experts, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    expected = [
        (token, expert)
        for token in range(count)
        for expert in sorted(range(experts), key=lambda e: -float(prob_TE[token, e]))[:top_k]
    ]
    assert pairs(*token_choice(prob_TE, top_k, [count])) == sorted(expected)


@given(st.integers(0, 10**6), lengths, st.integers(1, 5), st.data())
def test_every_expert_takes_its_share_of_every_text(
    seed: int, length_B: list[int], experts: int, data: st.DataObject
) -> None:
    """``ceil(k S / E)`` tokens of each text, the most probable ones, the earlier of two equal ones."""
    top_k = data.draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(seed)
    prob_TE = torch.randint(1, 6, (sum(length_B), experts), generator=generator) / 10  # many ties
    expected = []
    start = 0
    for length in length_B:
        capacity = math.ceil(top_k * length / experts)
        for expert in range(experts):
            best = sorted(range(start, start + length), key=lambda t: (-float(prob_TE[t, expert]), t))
            expected += [(token, expert) for token in best[:capacity]]
        start += length
    assert pairs(*expert_choice(prob_TE, top_k, length_B)) == sorted(expected)


@given(st.integers(0, 10**6), lengths, st.sampled_from(["token_choice", "expert_choice"]))
def test_pairs_stand_in_the_order_of_their_tokens(seed: int, length_B: list[int], kind: str) -> None:
    token_P = make_router(seed=seed, kind=kind)(tokens(sum(length_B), seed), length_B).token_P
    assert token_P.tolist() == sorted(token_P.tolist())


@given(st.integers(0, 10**6), lengths)
def test_expert_choice_in_a_text_ignores_the_other_texts(seed: int, length_B: list[int]) -> None:
    router = make_router(seed=seed, kind="expert_choice")
    hidden_TD = tokens(sum(length_B), seed)
    together = router(hidden_TD, length_B)
    alone = [router(part, [len(part)]) for part in hidden_TD.split(length_B)]
    found = []
    for start, routing in zip(offsets(length_B), alone, strict=False):
        found += pairs(routing.token_P + start, routing.expert_P)
    assert pairs(together.token_P, together.expert_P) == sorted(found)


# ---- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [None, 1.0, 2.0, 0.5])
@pytest.mark.parametrize("kind", ["token_choice", "expert_choice"])
def test_weights_are_the_softmax_over_the_p_norm_of_the_chosen(kind: str, normalize: float | None) -> None:
    router = make_router(kind=kind, top_k=2, normalize=normalize)
    hidden_TD = tokens(7)
    routing = router(hidden_TD, [3, 4])
    logit_TE = hidden_TD.double() @ router.weight_ED.detach().double().T
    prob_TE = logit_TE.exp() / logit_TE.exp().sum(-1, keepdim=True)
    routed = list(zip(routing.token_P.tolist(), routing.expert_P.tolist(), strict=True))
    expected = []
    for token, expert in routed:
        chosen = [float(prob_TE[token, e]) for t, e in routed if t == token]
        norm = sum(p**normalize for p in chosen) ** (1 / normalize) if normalize else 1.0
        expected.append(float(prob_TE[token, expert]) / norm)
    assert routing.weight_P.tolist() == pytest.approx(expected, rel=1e-5)
    assert routing.weight_P.dtype == torch.float32


def test_normalised_weights_of_a_token_sum_to_one_and_raw_ones_to_less() -> None:
    hidden_TD = tokens(9)
    for normalize, low, high in ((1.0, 1 - 1e-6, 1 + 1e-6), (None, 0.5, 0.999)):
        routing = make_router(normalize=normalize)(hidden_TD, [9])
        total_T = torch.zeros(9).index_add(0, routing.token_P, routing.weight_P)
        assert bool(((total_T >= low) & (total_T <= high)).all())


def test_half_precision_states_are_routed_in_fp32() -> None:
    router = make_router(normalize=None)
    half_TD = tokens(5).bfloat16()
    expected = router(half_TD.float(), [5])
    with torch.autocast("cpu", torch.bfloat16):
        found = router(half_TD, [5])
    assert torch.equal(found.weight_P, expected.weight_P)
    assert found.weight_P.dtype == torch.float32


def test_jitter_shakes_the_choice_in_training_alone() -> None:
    hidden_TD = tokens(50)
    router = make_router(normalize=None, jitter=0.3)
    calm = make_router(normalize=None)(hidden_TD, [50]).weight_P
    assert torch.equal(router(hidden_TD, [50]).weight_P, calm)
    router.train()
    first, second = router(hidden_TD, [50]).weight_P, router(hidden_TD, [50]).weight_P
    assert not torch.equal(first, second)
    assert not torch.equal(first, calm)
    assert torch.equal(hidden_TD, tokens(50))  # the caller's states are not shaken


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_token_needs_an_expert(top_k: int) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        RouterConfig(top_k=top_k)


# ---- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["token_choice", "expert_choice"])
def test_statistics_equal_a_hand_count(kind: str) -> None:
    router = make_router(num_experts=5, kind=kind, top_k=2)
    hidden_TD = tokens(8)
    with torch.no_grad():
        routing = router(hidden_TD, [3, 5])
    stats = routing.stats
    logit_TE = (hidden_TD @ router.weight_ED.T).detach().double()
    prob_TE = logit_TE.softmax(-1)
    assert (stats.layer, stats.tokens) == (3, 8)
    assert stats.count_E.tolist() == [routing.expert_P.tolist().count(expert) for expert in range(5)]
    assert float(stats.load_E.sum()) == pytest.approx(1)
    load = [count / len(routing.expert_P) for count in stats.count_E.tolist()]
    assert stats.load_E.tolist() == pytest.approx(load)
    entropy = -sum(float(p) * math.log(p) for p in prob_TE.flatten())
    mass = sum(float(prob_TE[t, e]) for t, e in zip(routing.token_P, routing.expert_P, strict=True))
    assert float(stats.entropy) == pytest.approx(entropy, rel=1e-5)
    assert float(stats.top_mass) == pytest.approx(mass, rel=1e-5)
    assert float(stats.z) == pytest.approx(sum(float(x) ** 2 for x in logit_TE.logsumexp(-1)), rel=1e-5)
    assert stats.prob_E.tolist() == pytest.approx(prob_TE.sum(0).tolist(), rel=1e-5)
    assert stats.summary() == {
        "layer": 3,
        "load": [round(share, 4) for share in load],
        "entropy": pytest.approx(entropy / 8, abs=1e-4),
        "top_mass": pytest.approx(mass / 8, abs=1e-4),
        "dead_experts": stats.count_E.tolist().count(0),
    }


def test_experts_without_a_token_are_dead() -> None:
    router = make_router(num_experts=4, top_k=1)
    with torch.no_grad():
        router.weight_ED.zero_()
        router.weight_ED[1], router.weight_ED[2] = 1.0, -1.0
    hidden_TD = torch.tensor([[1.0], [2.0], [-1.0]]).expand(3, WIDTH)
    stats = router(hidden_TD, [3]).stats
    assert stats.count_E.tolist() == [0, 2, 1, 0]
    assert stats.dead_experts == 2
    assert stats.load_E.tolist() == pytest.approx([0, 2 / 3, 1 / 3, 0])


@given(st.integers(0, 10**6), st.integers(1, 8))
def test_statistics_of_chunks_add_up_to_those_of_the_whole(seed: int, cut: int) -> None:
    router = make_router(seed=seed)
    hidden_TD = tokens(9, seed)
    whole = router(hidden_TD, [9]).stats
    parts = [router(part, [len(part)]).stats for part in (hidden_TD[:cut], hidden_TD[cut:])]
    total = parts[0] + parts[1]
    assert (total.layer, total.tokens) == (whole.layer, whole.tokens)
    assert torch.equal(total.count_E, whole.count_E)
    for name in ("prob_E", "z", "entropy", "top_mass"):
        torch.testing.assert_close(getattr(total, name), getattr(whole, name), rtol=1e-5, atol=1e-5)


def test_only_probabilities_and_z_carry_gradient_and_detach_cuts_it() -> None:
    stats = make_router()(tokens(4), [4]).stats
    carries = {name: getattr(stats, name).requires_grad for name in RouterStats.__slots__[2:-2]}
    assert carries == {"count_E": False, "prob_E": True, "z": True, "entropy": False, "top_mass": False}
    assert not stats.detach().prob_E.requires_grad
    assert not stats.detach().z.requires_grad
