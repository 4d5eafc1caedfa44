"""Packed attention equals padded; a text's states depend on that text alone; depth is an argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import MakeModel
from moembed.embedder import Embedder
from moembed.families.flat import FlatConfig, FlatMoE
from moembed.model.encoder import Encoder, initialise, num_parameters
from moembed.model.rope import RopeSpec, cos_sin, rotate
from moembed.moe.router import RouterConfig
from moembed.packing import pack
from moembed.types import Batch, UserError

EQUAL = {"rtol": 0.0, "atol": 1e-5}  # fp32 on two orders of summation; states are of order 1
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "absolute": {},
    "offset": {"position_offset": 2, "num_token_types": 1},
    "rope": {"position": "rope", "num_token_types": 0, "attention_bias": False, "num_heads": 4},
    "gated": {"gated": True, "activation": "silu", "ffn_bias": False},
    "experts": {"moe": FlatMoE(layers=(1, 3), num_experts=4)},
    "expert choice": {
        "moe": FlatMoE(layers=(0, 2), num_experts=4, router=RouterConfig(kind="expert_choice"))
    },
}
texts_of_tokens = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=9), min_size=1, max_size=7)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> Embedder:
    return make_model(**ARCHITECTURES[request.param])


@torch.no_grad()
def states(model: Embedder, batch: Batch, depths: range | list[int] | None = None) -> dict[int, Tensor]:
    return model.encoder(batch.token_T, batch.length_B, depths)[0]


@settings(max_examples=40)
@given(texts_of_tokens)
def test_packed_equals_padded_in_states_and_gradients(model: Embedder, rows: list[list[int]]) -> None:
    batch = pack(rows)
    found: dict[str, list[Tensor]] = {}
    for backend in ("padded", "packed"):  # the model is shared, so leave it on its default
        model.encoder.attention_backend = backend
        (states_TD,) = model.encoder(batch.token_T, batch.length_B)[0].values()
        parameters = [p for p in model.parameters() if p.requires_grad]
        loss = (states_TD * torch.linspace(-1, 1, states_TD.numel()).view_as(states_TD)).sum()
        found[backend] = [states_TD, *torch.autograd.grad(loss, parameters, allow_unused=True)]
    for packed, padded in zip(found["packed"], found["padded"], strict=True):
        # gradients sum over tokens, so their rounding grows with their size
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["packed"][0], found["padded"][0], **EQUAL)


@settings(max_examples=40)
@given(texts_of_tokens, st.randoms())
def test_a_vector_depends_on_its_text_alone(model: Embedder, rows: list[list[int]], random: Any) -> None:
    with torch.no_grad():
        together = model(pack(rows)).vector_BM
        alone = torch.cat([model(pack([row])).vector_BM for row in rows])
        order = random.sample(range(len(rows)), len(rows))
        shuffled = model(pack([rows[i] for i in order])).vector_BM
    torch.testing.assert_close(together, alone, **EQUAL)
    torch.testing.assert_close(shuffled, together[order], **EQUAL)


@pytest.mark.parametrize("batch_tokens", [1, 7, 40, 100_000])
def test_vectors_do_not_depend_on_the_chunks(model: Embedder, texts: list[str], batch_tokens: int) -> None:
    expected = torch.from_numpy(model.encode(texts))
    found = torch.from_numpy(model.encode(texts, batch_tokens=batch_tokens))
    torch.testing.assert_close(found, expected, **EQUAL)


# ---- depths --------------------------------------------------------------------------------------


def test_the_states_of_every_depth_are_those_of_stopping_there(model: Embedder, texts: list[str]) -> None:
    batch = model.tokenizer.batch(texts)
    every = states(model, batch, range(5))
    assert sorted(every) == [0, 1, 2, 3, 4]
    for depth in range(5):
        (stopped,) = states(model, batch, [depth]).values()
        assert torch.equal(stopped, every[depth])
    assert torch.equal(states(model, batch)[4], every[4])
    assert all(not torch.equal(every[depth], every[depth + 1]) for depth in range(4))


def test_layers_beyond_the_deepest_are_not_run(moe_model: Embedder, texts: list[str]) -> None:
    ran: list[int] = []
    for number, block in enumerate(moe_model.encoder.layers):
        block.attention.register_forward_hook(lambda *_, number=number: ran.append(number))
    batch = moe_model.tokenizer.batch(texts)
    hidden, router = moe_model.encoder(batch.token_T, batch.length_B, [1, 2])
    assert sorted(hidden) == [1, 2]
    assert ran == [0, 1]
    assert [part.layer for part in router] == [1]


@pytest.mark.parametrize("depths", [[5], [-1], [1, 9], []])
def test_a_depth_out_of_range_is_refused(moe_model: Embedder, depths: list[int]) -> None:
    with pytest.raises(UserError, match=r"not within 0\.\.4"):
        moe_model(pack([[2, 3]]), depths)


def test_the_deepest_entry_is_the_embedding(moe_model: Embedder, texts: list[str]) -> None:
    batch = moe_model.tokenizer.batch(texts)
    with torch.no_grad():
        encoded = moe_model(batch, [1, 4])
        assert torch.equal(encoded.vector_BM, moe_model(batch).vector_BM)
        assert torch.equal(encoded.by_depth[1], moe_model(batch, [1]).vector_BM)
    torch.testing.assert_close(encoded.by_depth[1].norm(dim=-1), torch.ones(len(texts)))


# ---- lengths and positions -----------------------------------------------------------------------


def test_a_text_longer_than_the_model_is_refused(make_model: MakeModel) -> None:
    model = make_model(position_offset=2)
    assert model.encoder.spec.max_length == 30
    model(pack([[5] * 30]))
    with pytest.raises(UserError, match="a text has 31 tokens, the model reads 30"):
        model(pack([[5], [5] * 31]))


def test_rotation_turns_by_the_angle_of_the_position() -> None:
    """Coordinates (i, i + C/2) are the real and imaginary part of a number turned by p * base^(-2i/C)."""
    states_THC = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(states_THC, *cos_sin(torch.arange(5), 8, RopeSpec(base=100.0)))
    angle = torch.arange(5)[:, None] * torch.tensor([100.0 ** (-2 * i / 8) for i in range(4)])
    number = torch.complex(states_THC[..., :4], states_THC[..., 4:]) * torch.exp(1j * angle)[:, None]
    torch.testing.assert_close(turned, torch.cat([number.real, number.imag], dim=-1))


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(1))
    scores = []
    for start in (0, 3, 11):
        turned = [
            rotate(x[None], *cos_sin(torch.tensor([start + d]), 8, RopeSpec(base=50.0)))
            for x, d in ((query, 0), (key, 4))
        ]
        scores.append(float((turned[0] * turned[1]).sum()))
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)


# ---- size and fresh weights ----------------------------------------------------------------------


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", ["each", "shared", "none"])
@pytest.mark.parametrize("shared", [0, 2])
def test_the_number_of_parameters_equals_the_sum_by_hand(gated: bool, bias: Any, shared: int) -> None:
    V, P, D, F, L, E, k = 50, 20, 8, 12, 3, 4, 2
    moe = FlatMoE(layers=(0, 2), num_experts=E, num_shared_experts=shared, bias=bias)
    spec = FlatConfig(
        vocab_size=V, width=D, num_layers=L, num_heads=2, ffn_width=F, gated=gated,
        max_positions=P, num_token_types=2, moe=moe,
    ).spec()  # fmt: skip
    matrices = 2 + gated
    weights, biases = matrices * D * F, (matrices - 1) * F + D
    attention = 4 * D * D + 4 * D + 2 * 2 * D
    expert = weights + biases * (bias == "each")
    wide = (matrices * D + (matrices - 1) * (bias != "none")) * shared * F + D * (bias != "none")
    routed_layer = E * D + E * expert + wide * (shared > 0) + D * (bias == "shared")
    total = V * D + P * D + 2 * D + 2 * D + L * attention + (L - 2) * (weights + biases) + 2 * routed_layer
    assert num_parameters(spec) == total == sum(p.numel() for p in Encoder(spec).parameters())
    assert num_parameters(spec, active=True) == total - 2 * (E - k) * expert


def test_nomic_embed_v2_has_the_published_number_of_parameters() -> None:
    """475,292,928 in all and 305,423,616 active, as counted from the published tensors."""
    spec = FlatConfig(
        vocab_size=250048, width=768, num_layers=12, num_heads=12, ffn_width=3072,
        position="rope", max_positions=2048, num_token_types=1,
        moe=FlatMoE(layers=(1, 3, 5, 7, 9, 11), num_experts=8, bias="shared"),
    ).spec()  # fmt: skip
    assert num_parameters(spec) == 475_292_928
    assert num_parameters(spec, active=True) == 305_423_616


def test_fresh_weights_are_seeded_and_of_the_asked_spread(make_model: MakeModel) -> None:
    first, again, other = (make_model(**ARCHITECTURES["experts"]).encoder for _ in range(3))
    initialise(first, std=0.5, seed=3)
    initialise(again, std=0.5, seed=3)
    initialise(other, std=0.5, seed=4)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        if "norm" in name or "bias" in name:
            assert parameter.eq(float(name.endswith("norm.weight"))).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.5, rel=0.25), name
            assert not torch.equal(parameter, other.get_parameter(name))


def test_dropout_is_in_training_alone(make_model: MakeModel, texts: list[str]) -> None:
    model = make_model(dropout=0.2)
    batch = model.tokenizer.batch(texts)
    assert torch.equal(model(batch).vector_BM, model(batch).vector_BM)
    model.train()
    assert not torch.equal(model(batch).vector_BM, model(batch).vector_BM)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"width": 15}, "not a multiple of num_heads"),
        ({"moe": FlatMoE(layers=(4,), num_experts=2)}, "go beyond the 4 layers"),
        ({"dropout": 1.0}, "less than 1"),
    ],
)
def test_a_config_that_does_not_fit_together_is_refused(
    changes: dict[str, Any], complaint: str, make_model: MakeModel
) -> None:
    with pytest.raises(ValueError, match=complaint):
        make_model(**changes)


@pytest.mark.parametrize("position", ["absolute", "rope"])
def test_a_text_without_a_token_is_passed_over(position: str, make_model: MakeModel) -> None:
    """The fused kernel would end the process: it divides by the length."""
    encoder = make_model(num_layers=2, position=position, moe=FlatMoE(layers=(1,), num_experts=4)).encoder
    token_T = torch.tensor([5, 6, 7])
    with torch.no_grad():
        found, _ = encoder(token_T, (0, 0, 1, 2))
        expected, _ = encoder(token_T, (1, 2))
    torch.testing.assert_close(found[2], expected[2])
