"""A field of the spec that a format does not know is refused by name, and never dropped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from conftest import MakeModel
from moembed.export.gguf.graph import as_graph
from moembed.export.nomic import to_nomic
from moembed.export.onnx.computed import require_computed
from moembed.families.flat import FlatMoE
from moembed.folder.parts import Parts
from moembed.model.block import LayerSpec
from moembed.model.encoder import Encoder
from moembed.model.norm import NormSpec
from moembed.model.spec import EncoderSpec
from moembed.moe.router import RouterConfig
from moembed.types import UserError
from random_specs import specs

UNSAYABLE: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "window": {"window": 3},
    "num_kv_heads": {"num_kv_heads": 1},
    "qk_norm": {"qk_norm": NormSpec(kind="rms")},
}


def with_attention(parts: Parts, changes: dict[str, Any]) -> Parts:
    def change(_: int, layer: LayerSpec) -> LayerSpec:
        return layer.model_copy(update={"attention": layer.attention.model_copy(update=changes)})

    spec = parts.spec.with_layers(change)
    return replace(parts, spec=spec, state=Encoder(spec).state_dict())


@pytest.mark.parametrize("field", UNSAYABLE)
@pytest.mark.parametrize("position", ["absolute", "rope"])
def test_what_a_format_cannot_say_is_refused_by_name(
    field: str, position: str, make_model: MakeModel
) -> None:
    parts = with_attention(make_model(position=position).parts(), UNSAYABLE[field])
    with pytest.raises(UserError, match=f"cannot hold this model: it has .*attention.{field}"):
        as_graph(parts, False)
    with pytest.raises(UserError, match="the Nomic layout cannot hold this model"):
        to_nomic(parts)


def test_a_capacity_of_inference_is_refused_and_one_of_training_is_left_out(make_model: MakeModel) -> None:
    for asked in (False, True):
        router = RouterConfig(normalize=None, capacity_factor=0.5, capacity_at_inference=asked)
        moe = FlatMoE(layers=(1,), num_experts=4, bias="shared", router=router)
        parts = make_model(position="rope", moe=moe).parts()
        if not asked:
            assert to_nomic(parts).spec.moe.router.capacity_factor is None
            require_computed(parts.spec)
            continue
        for export in (to_nomic, lambda parts: require_computed(parts.spec)):
            with pytest.raises(UserError, match=r"this model: it has .*capacity_factor = 0\.5"):
                export(parts)


def test_norms_and_layers_of_another_kind_are_refused(make_model: MakeModel) -> None:
    parts, rms = make_model().parts(), NormSpec(kind="rms")

    def only_the_second(number: int, layer: LayerSpec) -> LayerSpec:
        return layer.model_copy(update={"norm": rms}) if number == 1 else layer

    for spec, told in (
        (parts.spec.replace(final_norm=rms), "final_norm"),
        (parts.spec.with_layers(only_the_second), r"norm.kind = 'rms' in the layers \[1\]"),
    ):
        with pytest.raises(UserError, match=told):
            as_graph(replace(parts, spec=spec), False)


@settings(max_examples=60)
@given(specs())
def test_the_onnx_graph_takes_no_spec_with_a_field_it_does_not_read(spec: EncoderSpec) -> None:
    """By hand: what `moembed.export.onnx.encoder` computes, and no more."""
    sayable = all(layer.shares is None for layer in spec.layers) and not any(
        layer.moe and layer.moe.router.kind == "expert_choice" for layer in spec.layers
    )
    if sayable:
        require_computed(spec)
    else:
        with pytest.raises(UserError, match="the ONNX graph cannot run this model: it has "):
            require_computed(spec)
