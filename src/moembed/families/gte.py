"""GTE v1.5, mGTE (Zhang et al., arXiv 2407.19669), Arctic Embed M v2: BERT, rotary, gated feed-forwards.

``new`` is what their publisher calls the code beside the weights, ``gte`` what transformers calls its own;
the tensors have the same names in both.
"""

from __future__ import annotations

from typing import Any

from moembed.families.mapping import Names, Stored, activation, activation_name, require_reads_as
from moembed.families.rotary import read_rope, write_rope
from moembed.model.attention import AttentionSpec
from moembed.model.block import LayerSpec
from moembed.model.embeddings import EmbeddingSpec
from moembed.model.norm import NormSpec
from moembed.model.rope import RopeSpec
from moembed.model.spec import EncoderSpec
from moembed.moe.ffn import FeedForwardSpec
from moembed.types import UserError

CLASSES = {"new": "NewModel", "gte": "GteModel"}  # by model_type
_FIXED = {  # what we compute; an absent key means the same
    "position_embedding_type": "rope",
    "layer_norm_type": "layer_norm",
    "logn_attention_scale": False,
    "logn_attention_clip1": False,
    "pack_qkv": True,
}


def read_config(values: dict[str, Any]) -> EncoderSpec:
    for key, value in _FIXED.items():
        if values.get(key, value) != value:
            raise UserError(f"{key} = {values[key]!r} is not supported")
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if width % heads:
        raise UserError(f"width {width} is not a multiple of num_heads {heads}")
    norm = NormSpec(eps=values.get("layer_norm_eps", 1e-12))
    attention = AttentionSpec(
        num_heads=heads, num_kv_heads=heads, head_size=width // heads, rope=_rope(values, width // heads)
    )
    ffn = FeedForwardSpec(
        width=values["intermediate_size"],
        activation=activation(values.get("hidden_act", "gelu")),
        gated=True,
        bias=False,
    )
    return EncoderSpec(
        width=width,
        max_length=values["max_position_embeddings"],
        embeddings=EmbeddingSpec(
            vocabulary=values["vocab_size"],
            token_types=values.get("type_vocab_size", 1 if values["model_type"] == "gte" else 2),
            norm=norm,
        ),
        layers=(LayerSpec(attention=attention, ffn=ffn, norm=norm),) * values["num_hidden_layers"],
    )


def _rope(values: dict[str, Any], head_size: int) -> RopeSpec:
    """``ntk`` of the published code: frequencies ``(factor * base)^(-2i / C) / factor^(2 / C)``."""
    theta = 10_000.0 if values["model_type"] == "new" else 160_000.0
    told = values.get("rope_scaling") or {}
    if told.get("type") != "ntk":
        return read_rope(values, theta)
    if told.get("mixed_b") is not None:
        raise UserError(f"rope_scaling with mixed_b = {told['mixed_b']!r} is not supported")
    base, factor = values.get("rope_theta", theta), float(told["factor"])
    return RopeSpec(base=base * factor, scaling=factor ** (2 / head_size))


def write_config(spec: EncoderSpec, model_type: str) -> dict[str, Any]:
    """The config of a checkpoint that reads as ``spec``.

    Raises:
        UserError: what the spec has and the layout cannot say, in one sentence.
    """
    layer, target = spec.layers[0], f"the {model_type} layout"
    rope, head_size = layer.attention.rope or RopeSpec(), layer.attention.head_size
    if spec.width != layer.attention.num_heads * head_size:
        raise UserError(f"{target} cannot hold this model: it has heads of size {head_size}")
    values: dict[str, Any] = {
        "model_type": model_type,
        "architectures": [CLASSES[model_type]],
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": layer.attention.num_heads,
        "intermediate_size": layer.ffn.width,
        "hidden_act": activation_name(layer.ffn.activation),
        "layer_norm_eps": layer.norm.eps,
        "max_position_embeddings": spec.max_length,
        "type_vocab_size": spec.embeddings.token_types,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.0,
    }
    if model_type == "gte":
        values["rope_parameters"] = write_rope(rope)
    else:
        factor = round(rope.scaling ** (head_size / 2), 6)
        scaling = None if rope.scaling == 1 else {"type": "ntk", "factor": factor}
        values |= {"rope_theta": rope.base / factor, "rope_scaling": scaling, **_FIXED}
    require_reads_as(spec, read_config, values, target)
    return values


def names(spec: EncoderSpec) -> Names:
    table: Names = {
        "word.weight": Stored("embeddings.word_embeddings.weight"),
        "token_type.weight": Stored("embeddings.token_type_embeddings.weight"),
    }
    for i in range(spec.num_layers):
        ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
        table[f"{ours}.ffn.up.weight"] = Stored(f"{theirs}.mlp.up_gate_proj.weight", part=(0, 2))
        table[f"{ours}.ffn.gate.weight"] = Stored(f"{theirs}.mlp.up_gate_proj.weight", part=(1, 2))
    for part in ("weight", "bias"):
        table[f"norm.{part}"] = Stored(f"embeddings.LayerNorm.{part}")
        for i in range(spec.num_layers):
            ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
            table |= {
                f"{ours}.attention.qkv.{part}": Stored(f"{theirs}.attention.qkv_proj.{part}"),
                f"{ours}.attention.out.{part}": Stored(f"{theirs}.attention.o_proj.{part}"),
                f"{ours}.attention_norm.{part}": Stored(f"{theirs}.attn_ln.{part}"),
                f"{ours}.ffn.down.{part}": Stored(f"{theirs}.mlp.down_proj.{part}"),
                f"{ours}.ffn_norm.{part}": Stored(f"{theirs}.mlp_ln.{part}"),
            }
    return table
