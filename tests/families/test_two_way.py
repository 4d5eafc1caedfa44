"""What a family writes reads as the same spec, or is refused; our own keys are the bytes they always were."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moembed.families.flat import FlatConfig, FlatMoE, flatten
from moembed.families.own import encoder_json, read_encoder
from moembed.families.registry import FAMILIES, family_to_write
from moembed.model.norm import NormSpec
from moembed.model.rope import RopeSpec
from moembed.model.spec import EncoderSpec
from moembed.moe.router import RouterConfig
from moembed.types import UserError
from random_specs import flats, specs
from tiny_configs import CONFIGS, ENCODERS

DENSE: dict[str, Any] = {"vocab_size": 99, "width": 16, "num_layers": 2, "num_heads": 2, "ffn_width": 24}
SAYABLE = {  # by family: what it can say in full
    "bert": {},
    "roberta": {"position_offset": 2},
    "xlm-roberta": {"position_offset": 2, "activation": "gelu_tanh"},
    "camembert": {"position_offset": 2, "num_token_types": 1},
    "nomic_bert": {"position": "rope", "gated": True, "activation": "silu", "norm": "pre"},
    "moembed": {"dropout": 0.1, "gated": True, "activation": "relu", "norm": "pre", "position": "rope"},
}
FROZEN = [  # as files have held it, and as ids of models were made of it, since the first version
    (
        "bert",
        {"vocab_size": 30522, "width": 384, "num_layers": 6, "num_heads": 12, "ffn_width": 1536},
        '{"family":"bert","vocab_size":30522,"width":384,"num_layers":6,"num_heads":12,"ffn_width":1536,'
        '"activation":"gelu","gated":false,"attention_bias":true,"ffn_bias":true,"norm":"post",'
        '"norm_eps":1e-12,"position":"absolute","max_positions":512,"position_offset":0,"rope_base":10000.0,'
        '"num_token_types":2,"dropout":0.0,"moe":null}',
    ),
    (
        "xlm-roberta",
        DENSE | {"norm_eps": 1e-5, "max_positions": 514, "position_offset": 2, "num_token_types": 1},
        '{"family":"xlm-roberta","vocab_size":99,"width":16,"num_layers":2,"num_heads":2,"ffn_width":24,'
        '"activation":"gelu","gated":false,"attention_bias":true,"ffn_bias":true,"norm":"post",'
        '"norm_eps":0.00001,"position":"absolute","max_positions":514,"position_offset":2,'
        '"rope_base":10000.0,"num_token_types":1,"dropout":0.0,"moe":null}',
    ),
    (
        "moembed",
        {
            "vocab_size": 99, "width": 16, "num_layers": 4, "num_heads": 2, "ffn_width": 24,
            "activation": "silu", "gated": True, "attention_bias": False, "ffn_bias": False, "norm": "pre",
            "position": "rope", "max_positions": 64, "rope_base": 77, "num_token_types": 0, "dropout": 0.1,
            "moe": FlatMoE(
                layers=(1, 3), num_experts=4, num_shared_experts=1, shared_weight="mean", bias="shared",
                router=RouterConfig(normalize=None, jitter=0.1),
            ),
        },
        '{"family":"moembed","vocab_size":99,"width":16,"num_layers":4,"num_heads":2,"ffn_width":24,'
        '"activation":"silu","gated":true,"attention_bias":false,"ffn_bias":false,"norm":"pre",'
        '"norm_eps":1e-12,"position":"rope","max_positions":64,"position_offset":0,"rope_base":77.0,'
        '"num_token_types":0,"dropout":0.1,"moe":{"layers":[1,3],"num_experts":4,"num_shared_experts":1,'
        '"shared_weight":"mean","bias":"shared","router":{"kind":"token_choice","top_k":2,"normalize":null,'
        '"jitter":0.1}}}',
    ),
    (
        "moembed",
        DENSE | {"moe": FlatMoE(layers=(1,), router=RouterConfig(selection_bias=True, top_k=1))},
        '{"family":"moembed","vocab_size":99,"width":16,"num_layers":2,"num_heads":2,"ffn_width":24,'
        '"activation":"gelu","gated":false,"attention_bias":true,"ffn_bias":true,"norm":"post",'
        '"norm_eps":1e-12,"position":"absolute","max_positions":512,"position_offset":0,"rope_base":10000.0,'
        '"num_token_types":2,"dropout":0.0,"moe":{"layers":[1],"num_experts":8,"num_shared_experts":0,'
        '"shared_weight":"sum","bias":"each","router":{"kind":"token_choice","top_k":1,"normalize":1.0,'
        '"jitter":0.0,"selection_bias":true}}}',
    ),
]  # fmt: skip


def written_and_read(name: str, spec: EncoderSpec) -> EncoderSpec | None:
    """What a reader of the written file sees; None where the spec is refused, in one sentence."""
    try:
        values = FAMILIES[name].write_config(spec)
    except UserError as error:
        sentence = str(error)
    else:
        return FAMILIES[name].read_config(json.loads(json.dumps(values)))
    assert "cannot hold" in sentence
    assert "\n" not in sentence
    return None


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60)
@given(spec=flats.map(FlatConfig.spec) | specs())
def test_what_is_written_reads_as_the_same_spec_or_is_refused(name: str, spec: EncoderSpec) -> None:
    assert written_and_read(name, spec) in (spec, None)


@settings(max_examples=40)
@given(specs())
def test_our_own_config_can_say_any_spec(spec: EncoderSpec) -> None:
    assert written_and_read("moembed", spec) == spec


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_family_can_say_is_written(name: str) -> None:
    if name not in SAYABLE:
        spec = FAMILIES[name].read_config((CONFIGS | ENCODERS)[name])
    else:
        spec = FlatConfig.model_validate(DENSE | SAYABLE[name]).spec()
    assert written_and_read(name, spec) == spec
    assert family_to_write(spec, {"model_type": name}).name == name


def changed(spec: EncoderSpec, field: str) -> EncoderSpec:
    """The spec with one field that no published checkpoint of these families has."""
    layer = spec.layers[0]
    attention = {
        "window": 3,
        "causal": True,
        "qk_norm": NormSpec(kind="rms"),
        "num_kv_heads": 1,
        "head_size": 6,
        "out_bias": not layer.attention.out_bias,
        "rope": RopeSpec(base=3.0, scaling=2.0),
    }
    whole = {"final_norm": NormSpec(), "max_length": 7, "dropout": 0.2}
    if field in whole:
        return spec.replace(**{field: whole[field]})
    if field in attention:
        change = {"attention": layer.attention.model_copy(update={field: attention[field]})}
    elif field == "norm":
        change = {"norm": NormSpec(kind="rms", eps=layer.norm.eps)}
    else:
        change = {"ffn": layer.ffn.model_copy(update={"width": 25})}
    return spec.replace(layers=(layer.model_copy(update=change), *spec.layers[1:]))


FIELDS = [
    "window", "causal", "qk_norm", "num_kv_heads", "head_size", "out_bias", "rope", "final_norm",
    "norm", "width",
]  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", [name for name in SAYABLE if name != "moembed"])
def test_a_field_a_family_has_no_key_for_is_refused_by_name(name: str, field: str) -> None:
    spec = changed(FlatConfig.model_validate(DENSE | SAYABLE[name]).spec(), field)
    layout = "Nomic" if name == "nomic_bert" else name
    with pytest.raises(UserError, match=rf"the {layout} layout cannot hold this model: it has .*{field}"):
        FAMILIES[name].write_config(spec)
    assert family_to_write(spec, {"model_type": name}).name == "moembed"
    assert written_and_read("moembed", spec) == spec


@pytest.mark.parametrize(("family", "values", "text"), FROZEN)
def test_our_own_keys_are_the_bytes_they_always_were(family: str, values: dict[str, Any], text: str) -> None:
    spec = FlatConfig.model_validate(values).spec()
    assert encoder_json(spec, family) == text
    assert read_encoder(json.loads(text)) == spec


@given(flats)
def test_flat_keys_and_specs_are_one_to_one(flat: FlatConfig) -> None:
    spec = flat.spec()
    again = flatten(spec, "it")
    assert again.spec() == spec
    assert flatten(again.spec(), "it") == again


@pytest.mark.parametrize(
    ("encoder", "complaint"),
    [
        ({**DENSE, "family": "moembed", "widht": 3}, "unknown key 'widht', did you mean 'width'"),
        ({**DENSE, "moe": {"layers": [0], "num_experts": 2, "router": {"top_k": 3}}}, "top_k 3 is more than"),
        ({**DENSE, "position_offset": 600}, "row 600 of a table of 512"),
        ({"layers": []}, "key 'width' is missing"),
        ([], "encoder holds no keys"),
    ],
)
def test_a_broken_config_of_ours_is_one_sentence(encoder: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        read_encoder(encoder)
    assert "\n" not in str(error.value)


def test_heads_that_do_not_fill_the_width_are_refused_in_the_native_spelling() -> None:
    values = FAMILIES["nomic_bert"].write_config(
        FlatConfig.model_validate(
            DENSE | {"position": "rope", "gated": True, "activation": "silu"}
            | {"attention_bias": False, "ffn_bias": False}
        ).spec()
    )  # fmt: skip
    native = {key: value for key, value in values.items() if not key.startswith("n_")}
    assert FAMILIES["nomic_bert"].read_config(native | {"head_dim": 8}).width == 16
    with pytest.raises(UserError, match="head_dim = 64 is not supported: 2 heads make 16"):
        FAMILIES["nomic_bert"].read_config(native | {"head_dim": 64})


@settings(max_examples=30)
@given(st.sampled_from(sorted(FAMILIES)), specs())
def test_a_model_is_stored_where_it_can_be_said(name: str, spec: EncoderSpec) -> None:
    family = family_to_write(spec, {"model_type": name})
    assert family.name in (name, "moembed")
    assert family.read_config(family.write_config(spec)) == spec
