"""Configs as they were published mean what transformers takes them for, older spellings too."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from moembed.families.registry import FAMILIES, family_of
from moembed.families.unknown import MISSING
from moembed.types import UserError

_BASE = {"hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12}
_ROTARY = {"max_position_embeddings": 8192, "intermediate_size": 1152, "vocab_size": 50368}
_MODERN = _BASE | _ROTARY | {"model_type": "modernbert", "norm_eps": 1e-05, "local_attention": 128}
_GTE = _BASE | {
    "vocab_size": 250048, "intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "layer_norm_type": "layer_norm", "logn_attention_clip1": False, "logn_attention_scale": False,
    "max_position_embeddings": 8192, "pack_qkv": True, "position_embedding_type": "rope",
    "type_vocab_size": 1, "unpad_inputs": True, "use_memory_efficient_attention": True,
}  # fmt: skip
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "ModernBERT": (
        "ModernBertConfig",
        _MODERN | {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0}
        | {"local_rope_theta": 10000.0, "position_embedding_type": "absolute"},
    ),
    "mmBERT": (
        "ModernBertConfig",
        _MODERN | {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0}
        | {"local_rope_theta": 160000.0, "position_embedding_type": "sans_pos"},
    ),
    "ModernBERT, nothing told": ("ModernBertConfig", _MODERN),
    "ModernBERT of today": (
        "ModernBertConfig",
        _MODERN | {"layer_types": ["full_attention", *["sliding_attention"] * 5]}
        | {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 80000.0}}},
    ),
    "Arctic Embed M v2": ("GteConfig", _GTE | {"model_type": "gte", "rope_theta": 160000}),
    "GTE, nothing told": ("GteConfig", _GTE | {"model_type": "gte"}),
    "EuroBERT": (
        "EuroBertConfig",
        _BASE | _ROTARY | {"model_type": "eurobert", "rms_norm_eps": 1e-05, "rope_theta": 250000}
        | {"num_key_value_heads": 12, "hidden_act": "silu", "attention_bias": False, "rope_scaling": None},
    ),
    "DistilBERT": ("DistilBertConfig", {"model_type": "distilbert", "dim": 768, "n_layers": 6, "n_heads": 12}
        | {"hidden_dim": 3072, "vocab_size": 30522, "tie_weights_": True}),
    "MPNet": (
        "MPNetConfig",
        _BASE | {"model_type": "mpnet", "vocab_size": 30527, "intermediate_size": 3072, "pad_token_id": 1}
        | {"max_position_embeddings": 514, "layer_norm_eps": 1e-05, "relative_attention_num_buckets": 32},
    ),
    "Jina v3": (
        "JinaEmbeddingsV3Config",
        _BASE | {"model_type": "jina_embeddings_v3", "vocab_size": 250002, "intermediate_size": 4096}
        | {"max_position_embeddings": 8194, "type_vocab_size": 1, "layer_norm_eps": 1e-05},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_what_transformers_takes_it_for(name: str) -> None:
    class_name, values = PUBLISHED[name]
    theirs = getattr(transformers, class_name)(**values).to_dict()
    family = FAMILIES[values["model_type"]]
    assert family.read_config(values) == family.read_config(theirs)


def test_angles_of_multilingual_gte_are_those_of_its_published_code() -> None:
    """NTK scaling: base 20,000 with factor 8 turns as base 160,000 does, all slower by 8^(2 / 64)."""
    values = _GTE | {"model_type": "new", "rope_theta": 20000, "rope_scaling": {"factor": 8.0, "type": "ntk"}}
    spec = FAMILIES["new"].read_config(values)
    rope = spec.layers[0].attention.rope
    assert rope is not None
    assert rope.base == 160000.0
    assert rope.scaling == pytest.approx(8 ** (2 / 64))
    written = FAMILIES["new"].write_config(spec)
    assert (written["rope_theta"], written["rope_scaling"]) == (20000.0, {"factor": 8.0, "type": "ntk"})


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (_MODERN | {"layer_types": ["full_attention"]}, "layer_types"),
        (_MODERN | {"hidden_size": 767}, "not a multiple of num_heads"),
        (_MODERN | {"hidden_activation": "mish"}, "activation 'mish'"),
        (_GTE | {"model_type": "new", "logn_attention_scale": True}, "logn_attention_scale = True"),
        (_GTE | {"model_type": "new", "position_embedding_type": "absolute"}, "position_embedding_type"),
        (_GTE | {"model_type": "new", "layer_norm_type": "rms_norm"}, "layer_norm_type = 'rms_norm'"),
        (
            _GTE | {"model_type": "new", "rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.6}},
            "mixed_b = 0.6",
        ),
        (_BASE | {"model_type": "mpnet", "relative_attention_num_buckets": 16}, "num_buckets 16"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as error:
        FAMILIES[values["model_type"]].read_config(values)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "told"),
    [
        ("albert", "the nearest known family is 'bert', and what it lacks is word rows that are narrower"),
        ("modern_bert", "the nearest name is 'modernbert', but no file says how such a checkpoint is read"),
        ("zzzz", "known are bert, roberta"),
    ],
)
def test_an_unknown_family_is_told_the_nearest(model_type: str, told: str) -> None:
    with pytest.raises(UserError, match=f"unknown model_type '{model_type}': {told}"):
        family_of({"model_type": model_type})


def test_what_is_said_to_be_missing_is_missing() -> None:
    assert not MISSING.keys() & FAMILIES.keys()
    assert {nearest for nearest, _ in MISSING.values()} <= FAMILIES.keys()
