"""Whatever a spec says is computed: every field against the formulas, and no two specs are one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import moembed
import slow_encoder
from conftest import randomise
from moembed.model.attention import AttentionSpec
from moembed.model.block import LayerSpec
from moembed.model.embeddings import PositionTable
from moembed.model.encoder import Encoder, num_parameters, tensor_shapes
from moembed.model.norm import NormSpec
from moembed.model.relative_bias import RelativeBias
from moembed.model.spec import EncoderSpec, differences
from moembed.moe.layer import MoESpec
from moembed.packing import offsets, pack
from moembed.types import UserError
from random_specs import attentions, specs
from spec_table import PLAIN, RMS, ROPE, SPECS, attention, spec_of

ROWS = [[7, 8, 9, 10, 11, 12, 13, 14], [50], [20, 21, 22, 20]]


def random_encoder(spec: EncoderSpec, seed: int = 0) -> Encoder:
    encoder = Encoder(spec)
    randomise(encoder, seed)
    return encoder.eval()


@torch.no_grad()
def assert_equal_to_the_formulas(spec: EncoderSpec, rows: list[list[int]], backend: str) -> None:
    encoder, batch = random_encoder(spec), pack(rows)
    encoder.attention_backend = backend
    hidden, _ = encoder(batch.token_T, batch.length_B, range(spec.num_layers + 1))
    ends = offsets(batch.length_B)
    for row, place in zip(rows, batch.restore_B.tolist(), strict=True):
        expected = slow_encoder.states(spec, encoder.state_dict(), row)
        for depth, expected_SD in enumerate(expected):
            found_SD = hidden[depth][ends[place] : ends[place + 1]]
            torch.testing.assert_close(found_SD, expected_SD, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("backend", ["packed", "padded"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_field_is_computed_as_its_formula_says(spec: EncoderSpec, backend: str) -> None:
    assert_equal_to_the_formulas(spec, ROWS, backend)


@settings(max_examples=25)
@given(specs(), st.lists(st.lists(st.integers(0, 59), min_size=1, max_size=6), min_size=1, max_size=3))
def test_any_mixture_of_fields_is_computed_as_the_formulas_say(
    spec: EncoderSpec, rows: list[list[int]]
) -> None:
    kinds = [layer.moe.router.kind for layer in spec.layers if layer.moe]
    assume("expert_choice" not in kinds)  # it looks at a whole text, see tests/moe
    assert_equal_to_the_formulas(spec, rows, "packed")


def test_the_specs_of_this_file_are_told_apart() -> None:
    """Each field changes the states: what the tests above compare depends on it."""
    batch = pack(ROWS)
    found = {}
    for name, spec in SPECS.items():
        with torch.no_grad():
            (states_TD,) = random_encoder(spec)(batch.token_T, batch.length_B)[0].values()
        found[name] = states_TD
    for name, states_TD in found.items():
        if name != "plain":
            assert (states_TD - found["plain"]).abs().max() > 1e-3, name


@settings(max_examples=40)
@given(attentions(), st.data())
def test_packed_attention_equals_padded(spec: AttentionSpec, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(st.integers(0, 59), min_size=1, max_size=9), min_size=1, max_size=5))
    encoder, batch = random_encoder(spec_of(PLAIN.model_copy(update={"attention": spec}))), pack(rows)
    found = []
    for backend in ("packed", "padded"):
        encoder.attention_backend = backend
        (states_TD,) = encoder(batch.token_T, batch.length_B)[0].values()
        loss = (states_TD * torch.linspace(-1, 1, states_TD.numel()).view_as(states_TD)).sum()
        found.append([states_TD, *torch.autograd.grad(loss, list(encoder.parameters()), allow_unused=True)])
    for packed, padded in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-4)


def test_layers_that_share_have_one_set_of_tensors() -> None:
    spec, alone = SPECS["shared layers"], spec_of(PLAIN)
    assert tensor_shapes(spec) == tensor_shapes(alone)
    assert num_parameters(spec) == num_parameters(alone)


def test_the_first_layers_are_the_states_of_that_depth() -> None:
    batch = pack(ROWS)
    for name in ("final norm", "shared layers", "window"):
        spec = SPECS[name]
        encoder = random_encoder(spec)
        for depth in range(1, spec.num_layers + 1):
            member = Encoder(spec.first_layers(depth))
            kept = tensor_shapes(member.spec)
            member.load_state_dict({k: v for k, v in encoder.state_dict().items() if k in kept})
            with torch.no_grad():
                (found,) = member.eval()(batch.token_T, batch.length_B)[0].values()
                (expected,) = encoder(batch.token_T, batch.length_B, [depth])[0].values()
            assert torch.equal(found, expected)
    with pytest.raises(UserError, match=r"layers 3 is not within 1\.\.2"):
        spec_of().first_layers(3)


@given(specs())
def test_a_spec_is_the_same_after_json(spec: EncoderSpec) -> None:
    assert EncoderSpec.model_validate_json(spec.model_dump_json()) == spec
    assert differences(spec, spec) == []


@given(specs(), specs())
def test_specs_that_differ_are_told_what_in(one: EncoderSpec, other: EncoderSpec) -> None:
    assert bool(differences(one, other)) == (one != other)


def test_differences_name_the_fields_and_the_layers() -> None:
    assert differences(attention(window=2), spec_of()) == ["attention.window = 2 in the layers [0]"]
    everywhere = spec_of(*([PLAIN.model_copy(update={"norm": RMS})] * 2), final_norm=RMS)
    assert differences(everywhere, spec_of()) == ["final_norm", "norm.kind = 'rms'", "norm.eps = 0.001"]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: spec_of(max_length=31), "max_length 31 is more than the 30 positions"),
        (lambda: NormSpec(kind="rms", bias=False), "has no bias to leave out"),
        (lambda: NormSpec(plus_one=True), "of rms norms alone"),
        (lambda: LayerSpec(**dict(PLAIN) | {"attention_norm": False}), "must be pre-norm"),
        (lambda: RelativeBias(buckets=6), "not a multiple of 4"),
        (lambda: RelativeBias(buckets=32, max_distance=8), "leaves buckets unused"),
        (
            lambda: spec_of(*attention(num_heads=2, num_kv_heads=2).layers, relative_bias=RelativeBias()),
            "the same num_heads in all layers",
        ),
        (lambda: PositionTable(rows=2, offset=2), "row 2 of a table of 2"),
        (lambda: spec_of(last_state="without_residual"), "needs layers that are all pre-norm"),
        (lambda: AttentionSpec(num_heads=4, num_kv_heads=3, head_size=4), "not a multiple of num_kv_heads"),
        (lambda: AttentionSpec(num_heads=1, num_kv_heads=1, head_size=3, rope=ROPE), "cannot be rotary"),
        (lambda: spec_of(PLAIN.model_copy(update={"shares": 0})), "shares layer 0, which is no earlier"),
        (lambda: spec_of(PLAIN, PLAIN.model_copy(update={"shares": 0, "place": "pre"})), "another form"),
        (
            lambda: spec_of(*(PLAIN.model_copy(update={"moe": MoESpec(), "shares": x}) for x in (None, 0))),
            "experts, which layers cannot share",
        ),
        (lambda: EncoderSpec.model_validate(dict(spec_of()) | {"layers": ()}), "at least 1 item"),
    ],
)
def test_what_does_not_fit_together_is_refused(make: Any, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        make()


def test_no_family_is_named_where_encoders_are_computed() -> None:
    source = Path(moembed.__file__).parent
    names = ("bert", "nomic", "gemma", "qwen", "llama", "mpnet")
    for file in sorted([*source.glob("model/*.py"), *source.glob("moe/*.py")]):
        lines = file.read_text("utf-8").lower().splitlines()
        named = [line for line in lines if any(name in line for name in names)]
        assert not named, (file.name, named)
