"""What every router must do, whatever its kind; and the look-up of known ones against a loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moembed.config import validate
from moembed.moe.ffn import FeedForwardSpec
from moembed.moe.layer import MoE, MoESpec
from moembed.moe.router import ROUTERS
from moembed.moe.router_config import RouterConfig
from moembed.packing import offsets, spread
from moembed.types import TokenKeys, UserError

WIDTH, EXPERTS, VOCABULARY = 6, 4, 50
TAGS = {"de": [0, 1], "en": [2, 3], "fr": [1, 3], "nl": [0, 1]}
CONFIGS: dict[str, dict[str, Any]] = {
    "tag": {"tags": TAGS},
    "centroid": {"temperature": 0.3},
    "hash": {"seed": 7},
    "capacity": {"kind": "token_choice", "capacity_factor": 0.7, "capacity_at_inference": True},
    "capacity-centroid": {"kind": "centroid", "capacity_factor": 1.0, "capacity_at_inference": True},
}
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5)
kinds = st.sampled_from(sorted({*ROUTERS, *CONFIGS}))  # and the same kinds with another setting


def config_of(kind: str, **changes: Any) -> RouterConfig:
    return RouterConfig.model_validate({"kind": kind} | CONFIGS.get(kind, {}) | changes)


def make_moe(kind: str, seed: int = 0, **changes: Any) -> MoE:
    spec = MoESpec(num_experts=EXPERTS, router=config_of(kind, **changes))
    moe = MoE(WIDTH, FeedForwardSpec(width=8), spec, layer=3).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(generator=generator)
    return moe


def make_texts(length_B: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """States and ids of the tokens, and the tags of the texts."""
    generator = torch.Generator().manual_seed(seed + 1000)
    tokens = sum(length_B)
    return (
        torch.randn(tokens, WIDTH, generator=generator),
        torch.randint(VOCABULARY, (tokens,), generator=generator),
        torch.randint(len(TAGS), (len(length_B),), generator=generator),
    )


def keys_of(token_T: Tensor, tag_B: Tensor, length_B: list[int]) -> TokenKeys:
    return TokenKeys(token_T, spread(tag_B, length_B))


# ---- whatever the kind -----------------------------------------------------------------------------


@given(st.integers(0, 10**6), lengths, kinds)
def test_a_text_is_routed_as_if_it_were_alone(seed: int, length_B: list[int], kind: str) -> None:
    """Batch-mates, their number and their order change nothing: of texts that are packed, each is itself."""
    router = make_moe(kind, seed).router
    hidden_TD, token_T, tag_B = make_texts(length_B, seed)
    together = router(hidden_TD, length_B, keys_of(token_T, tag_B, length_B))
    found = list(zip(together.token_P.tolist(), together.expert_P.tolist(), strict=True))
    expected, weights = [], []
    parts = zip(offsets(length_B), hidden_TD.split(length_B), token_T.split(length_B), tag_B, strict=False)
    for start, states, ids, tag in parts:
        alone = router(states, [len(states)], keys_of(ids, tag[None], [len(states)]))
        expected += list(zip((alone.token_P + start).tolist(), alone.expert_P.tolist(), strict=True))
        weights += alone.weight_P.tolist()
    assert found == expected
    assert together.weight_P.tolist() == pytest.approx(weights, rel=1e-5)
    assert together.token_P.tolist() == sorted(together.token_P.tolist())


@given(st.integers(0, 10**6), lengths, kinds)
def test_backends_agree_and_padding_is_not_routed(seed: int, length_B: list[int], kind: str) -> None:
    moe = make_moe(kind, seed)
    hidden_TD, token_T, tag_B = make_texts(length_B, seed)
    keys = keys_of(token_T, tag_B, length_B)
    with torch.no_grad():
        slow_TD, slow = moe(hidden_TD, length_B, "loop", keys)
        fast_TD, fast = moe(hidden_TD, length_B, "grouped", keys)
        padded_TD = torch.cat([hidden_TD, torch.ones(3, WIDTH)])
        long_TD, long = moe(padded_TD, length_B, "loop", keys)
    torch.testing.assert_close(fast_TD, slow_TD, rtol=1e-4, atol=1e-4)
    assert torch.equal(long_TD, torch.cat([slow_TD, torch.zeros(3, WIDTH)]))
    assert slow.count_E.tolist() == fast.count_E.tolist() == long.count_E.tolist()
    assert slow.tokens == long.tokens == sum(length_B)


@given(st.integers(0, 10**6), lengths, kinds)
def test_statistics_add_up_over_texts(seed: int, length_B: list[int], kind: str) -> None:
    router = make_moe(kind, seed).router
    hidden_TD, token_T, tag_B = make_texts(length_B, seed)
    whole = router(hidden_TD, length_B, keys_of(token_T, tag_B, length_B)).stats
    parts = [
        router(states, [len(states)], keys_of(ids, tag[None], [len(states)])).stats
        for states, ids, tag in zip(hidden_TD.split(length_B), token_T.split(length_B), tag_B, strict=True)
    ]
    total = sum(parts[1:], parts[0])
    assert total.count_E.tolist() == whole.count_E.tolist()
    assert whole.count_E.sum() >= whole.tokens == sum(length_B)  # dropless
    assert (whole.dropped is None) == (total.dropped is None) == ("capacity" not in kind)
    assert whole.dropped is None or int(whole.dropped) == int(total.dropped)
    for name in ("prob_E", "z", "entropy", "top_mass"):
        torch.testing.assert_close(getattr(total, name), getattr(whole, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(ROUTERS))
def test_normalised_weights_keep_the_function_of_equal_experts(kind: str) -> None:
    """The weights of a token that meets any expert sum to 1."""
    hidden_TD, token_T, tag_B = make_texts([3, 5])
    routing = make_moe(kind).router(hidden_TD, [3, 5], keys_of(token_T, tag_B, [3, 5]))
    total_T = torch.zeros(8).index_add(0, routing.token_P, routing.weight_P.detach())
    met_T = torch.zeros(8).index_add(0, routing.token_P, torch.ones(len(routing.token_P))) > 0
    assert total_T[met_T].tolist() == pytest.approx([1.0] * int(met_T.sum()), abs=1e-6)


@pytest.mark.parametrize("kind", sorted(ROUTERS))
def test_only_routers_that_learn_have_weights_and_a_loss(kind: str) -> None:
    moe = make_moe(kind)
    hidden_TD, token_T, tag_B = make_texts([3, 5])
    stats = moe.router(hidden_TD, [3, 5], keys_of(token_T, tag_B, [3, 5])).stats
    learns = bool(list(moe.router.parameters()))
    assert (moe.router.learned, stats.learned) == (learns, learns)
    assert (stats.prob_E.requires_grad, stats.z.requires_grad) == (learns, learns)


# ---- tag -------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), lengths, st.sampled_from([1.0, 2.0, None]))
def test_a_text_meets_the_experts_of_its_tag_with_even_weights(
    seed: int, length_B: list[int], normalize: float | None
) -> None:
    hidden_TD, token_T, tag_B = make_texts(length_B, seed)
    routing = make_moe("tag", normalize=normalize).router(
        hidden_TD, length_B, keys_of(token_T, tag_B, length_B)
    )
    names = sorted(TAGS)
    tag_T = [tag for tag, length in zip(tag_B.tolist(), length_B, strict=True) for _ in range(length)]
    expected = [(token, expert) for token, tag in enumerate(tag_T) for expert in TAGS[names[tag]]]
    assert list(zip(routing.token_P.tolist(), routing.expert_P.tolist(), strict=True)) == expected
    weight = 0.5 if normalize in (1.0, None) else 1 / math.sqrt(2)
    assert routing.weight_P.tolist() == pytest.approx([weight] * len(expected))
    assert float(routing.stats.entropy) == pytest.approx(len(hidden_TD) * math.log(2), rel=1e-5)
    assert float(routing.stats.top_mass) == pytest.approx(len(hidden_TD), rel=1e-5)


def test_texts_without_a_tag_are_refused_and_the_tags_are_named() -> None:
    hidden_TD, token_T, _ = make_texts([3])
    with pytest.raises(UserError, match=r"known: de, en, fr, nl.*pass tag"):
        make_moe("tag").router(hidden_TD, [3], TokenKeys(token_T))


def test_groups_stand_for_a_table() -> None:
    groups = RouterConfig.model_validate({"kind": "tag", "top_k": 2, "tags": [["de", "nl"], "fr"]})
    assert groups.tags == {"de": (0, 1), "nl": (0, 1), "fr": (2, 3)}
    assert RouterConfig.model_validate({"kind": "tag", "tags": ["de", "fr"]}).top_k == 1
    assert RouterConfig.model_validate({"kind": "tag", "tags": TAGS}).top_k == 2
    assert RouterConfig.model_validate(groups.model_dump()) == groups


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"kind": "tag"}, "needs them"),
        ({"tags": {"de": [0, 1]}}, "needs them"),
        ({"kind": "tag", "tags": {"de": [0]}, "top_k": 2}, "needs 2 experts"),
        ({"kind": "tag", "tags": {"de": [0], "en": [1, 2]}}, "'en' needs 1 experts"),
        ({"kind": "tag", "tags": {"de": []}}, "needs 2 experts"),
        ({"kind": "tag", "tags": {"de": 3}}, "tags.de"),
        ({"kind": "tag", "tags": 3}, "tags"),
        ({"kind": "tag", "tags": {"de": [0, 0]}}, "different numbers"),
        ({"kind": "tag", "tags": {" ": [0, 1]}}, "has a name"),
        ({"kind": "tag", "tags": [["de"], ["de"]]}, "in two groups"),
        ({"kind": "tag", "tags": {"de": [0, 1]}, "default_tag": "en"}, "none of the tags de"),
        ({"kind": "tag", "tags": {"de": [0, 1]}, "selection_bias": True}, "selection_bias is for"),
    ],
)
def test_a_table_that_cannot_be_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        validate(RouterConfig, values)


@pytest.mark.parametrize("experts", [1, 3])
def test_every_expert_serves_a_tag(experts: int) -> None:
    router = config_of("tag", top_k=1, tags=["de", "en"])
    with pytest.raises(UserError, match="serves some tag"):
        validate(MoESpec, {"num_experts": experts, "router": router})


def test_a_router_is_written_as_before_there_were_tags() -> None:
    assert RouterConfig().model_dump_json() == (
        '{"kind":"token_choice","top_k":2,"normalize":1.0,"jitter":0.0}'
    )


# ---- hash ------------------------------------------------------------------------------------------


def test_a_hash_gives_every_token_id_its_own_experts() -> None:
    token_T = torch.arange(2000)
    routing = make_moe("hash").router(torch.zeros(2000, WIDTH), [2000], TokenKeys(token_T))
    expert_TK = routing.expert_P.view(2000, 2)
    assert (expert_TK[:, 0] != expert_TK[:, 1]).all()
    share_E = expert_TK.flatten().bincount(minlength=EXPERTS) / 4000
    assert share_E.tolist() == pytest.approx([1 / EXPERTS] * EXPERTS, abs=0.03)
    swapped = make_moe("hash").router(torch.zeros(3, WIDTH), [3], TokenKeys(torch.tensor([7, 3, 7])))
    assert swapped.expert_P.view(3, 2).tolist() == [expert_TK[i].tolist() for i in (7, 3, 7)]
    # saved models depend on these numbers: they are the same everywhere and for ever
    assert expert_TK[:4].tolist() == [[2, 1], [1, 2], [1, 3], [1, 0]]


def test_another_seed_is_another_hash() -> None:
    keys, states = TokenKeys(torch.arange(200)), torch.zeros(200, WIDTH)
    spec = MoESpec(num_experts=EXPERTS, router=config_of("hash", seed=8))
    other = MoE(WIDTH, FeedForwardSpec(width=8), spec, layer=3).router(states, [200], keys)
    same_P = make_moe("hash").router(states, [200], keys).expert_P == other.expert_P
    assert 0.1 < float(same_P.float().mean()) < 0.6


# ---- centroid --------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.sampled_from(["cosine", "dot"]), st.sampled_from([0.1, 1.0]))
def test_a_token_meets_the_experts_of_its_nearest_centroids(
    seed: int, similarity: str, temperature: float
) -> None:
    router = make_moe("centroid", seed, similarity=similarity, temperature=temperature).router
    hidden_TD, _, _ = make_texts([6], seed)
    routing = router(hidden_TD, [6])
    assert router.weight_ED is not None
    logit_TE = hidden_TD.double() @ router.weight_ED.detach().double().T
    if similarity == "cosine":
        logit_TE /= hidden_TD.double().norm(dim=1)[:, None] * router.weight_ED.detach().double().norm(dim=1)
    prob_TE = (logit_TE / temperature).softmax(-1)
    assert routing.expert_P.view(6, 2).tolist() == prob_TE.topk(2).indices.tolist()
    expected = prob_TE.topk(2).values
    torch.testing.assert_close(
        routing.weight_P.view(6, 2).double(), expected / expected.sum(1, keepdim=True), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("trainable", [True, False])
def test_centroids_that_stay_get_no_gradient(trainable: bool) -> None:
    router = make_moe("centroid", trainable=trainable).router
    hidden_TD, _, _ = make_texts([6])
    hidden_TD.requires_grad_()
    router(hidden_TD, [6]).stats.prob_E[0].backward()
    assert router.weight_ED is not None
    assert (router.weight_ED.grad is not None) == trainable
    assert hidden_TD.grad is not None
    assert hidden_TD.grad.any()


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 2.0), ("similarity", "dot"), ("trainable", False), ("seed", 3)]
)
def test_a_key_of_another_kind_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{name} is for a router of kind"):
        validate(RouterConfig, {"kind": "token_choice", name: value})
