"""Capacity against a loop over texts and experts; without one, nothing changes by a bit."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import MakeModel
from experts import make_moe, send_to_one, tokens
from moembed.config import validate
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.moe.capacity import capacities, within_capacity
from moembed.moe.router import RouterConfig
from moembed.training.parallel import World, _numbers, _unpacked
from moembed.types import UserError

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(st.integers(0, 10**6), lengths, st.sampled_from([0.3, 0.5, 1.0, 1.25]), st.integers(1, 3))
def test_an_expert_keeps_the_most_probable_tokens_of_every_text(
    seed: int, length_B: list[int], factor: float, top_k: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = sum(length_B)
    expert_TK = torch.rand(count, 4, generator=generator).topk(top_k).indices
    token_P, expert_P = torch.arange(count).repeat_interleave(top_k), expert_TK.flatten()
    prob_P = torch.randint(1, 4, (len(token_P),), generator=generator) / 4  # with ties
    capacity_B = capacities(length_B, factor, top_k, 4)
    assert capacity_B == [math.ceil(round(factor * top_k * length / 4, 6)) for length in length_B]
    kept_P = within_capacity(prob_P, token_P, expert_P, length_B, 4, capacity_B)

    wants: dict[tuple[int, int], list[tuple[float, int, int]]] = defaultdict(list)
    text_T = [text for text, length in enumerate(length_B) for _ in range(length)]
    for pair, (token, expert) in enumerate(zip(token_P.tolist(), expert_P.tolist(), strict=True)):
        wants[text_T[token], expert].append((-float(prob_P[pair]), token, pair))
    expected = {pair for (text, _), mine in wants.items() for *_, pair in sorted(mine)[: capacity_B[text]]}
    assert set(kept_P.nonzero()[:, 0].tolist()) == expected


@pytest.mark.parametrize("backend", ["loop", "grouped", "grouped_mm"])
def test_what_no_expert_has_room_for_gets_nothing_from_them(backend: str) -> None:
    """One expert takes a quarter of the 8 tokens; to the others the block adds nothing."""
    moe = make_moe(router=RouterConfig(top_k=1, capacity_factor=1.0)).train()
    send_to_one(moe, 2)
    hidden_TD = tokens(8).abs()
    output_TD, stats = moe(hidden_TD, [8], backend)
    best_T = moe.router.route(hidden_TD, [8])[1].prob_TE[:, 2].topk(2).indices
    assert set(output_TD.ne(0).any(1).nonzero()[:, 0].tolist()) == set(best_T.tolist())
    assert stats.count_E.tolist() == [0, 0, 8, 0]  # what was wanted, for the balance loss
    assert stats.summary()["dropped"] == pytest.approx(6 / 8)
    whole_TD, _ = moe.eval()(hidden_TD, [8], backend)  # in inference nothing is dropped
    assert whole_TD.ne(0).any(1).all()
    torch.testing.assert_close(output_TD[best_T], whole_TD[best_T], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_room_for_all_is_no_capacity_bit_for_bit(training: bool) -> None:
    plain, roomy = make_moe(), make_moe(router=RouterConfig(capacity_factor=4.0, capacity_at_inference=True))
    hidden_TD = tokens(9)
    expected, stats = plain.train(training)(hidden_TD, [4, 5])
    found, with_room = roomy.train(training)(hidden_TD, [4, 5])
    assert torch.equal(found, expected)
    assert stats.dropped is None
    assert "dropped" not in stats.summary()
    assert int(with_room.dropped) == 0
    assert torch.equal(with_room.count_E, stats.count_E)


def test_dropped_pairs_add_up_over_processes() -> None:
    moe = make_moe(router=RouterConfig(capacity_factor=0.5)).train()
    stats = moe(tokens(9), [4, 5])[1].detach()
    tokens_1 = torch.tensor([stats.tokens])
    row_S = torch.cat([stats.count_E, stats.prob_E, torch.stack(_numbers(stats)), tokens_1]).double()
    both = _unpacked(stats, 2 * row_S)
    assert both.summary() == (stats + stats).summary()
    assert float(both.z) == pytest.approx(2 * float(stats.z), rel=1e-6)
    assert int(both.dropped) == 2 * int(stats.dropped) > 0
    assert _unpacked(replace(stats, dropped=None), row_S).dropped is None
    assert World().sum_stats([stats]) == [stats]


def capacity_model(make_model: MakeModel, **changes: Any) -> Embedder:
    router = RouterConfig(capacity_factor=0.5, **changes)
    return make_model(moe=FlatMoE(layers=(1, 3), num_experts=4, router=router))


def test_a_saved_model_keeps_its_capacity_and_serves_without_unless_asked(
    make_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    plain = make_model(moe=FlatMoE(layers=(1, 3), num_experts=4)).encode(texts)
    for name, asked in (("training", False), ("always", True)):
        model = capacity_model(make_model, capacity_at_inference=asked)
        vectors = model.encode(texts)
        assert (vectors == plain).all() == (not asked)
        model.save_pretrained(tmp_path / name)
        again = Embedder.from_pretrained(tmp_path / name, device="cpu")
        assert again.encoder.spec == model.encoder.spec
        assert (again.encode(texts) == vectors).all()
        alone = [again.encode([text])[0] for text in texts]
        assert [float(abs(x - y).max()) for x, y in zip(alone, vectors, strict=True)] == pytest.approx(
            [0.0] * len(texts), abs=1e-5
        )
    assert capacity_model(make_model).encoder.spec.without_noise() == (
        make_model(moe=FlatMoE(layers=(1, 3), num_experts=4)).encoder.spec
    )


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"kind": "expert_choice", "capacity_factor": 1.0}, "not for expert_choice"),
        ({"kind": "hash", "capacity_factor": 1.0}, "not for hash"),
        ({"capacity_at_inference": True}, "needs a capacity_factor"),
        ({"capacity_factor": 0}, "capacity_factor"),
    ],
)
def test_a_capacity_that_cannot_be_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        validate(RouterConfig, values)
