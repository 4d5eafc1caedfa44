"""ModernBERT checkpoints (Warner et al., arXiv 2412.13663), mmBERT and Granite R2 among them.

Pre-norm without a norm before the first attention, gated feed-forwards, rotary positions of two bases: one
for the layers that see the whole text, one for those that see ``local_attention // 2`` tokens either side.
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

_FULL, _SLIDING = "full_attention", "sliding_attention"
_BASES = {_FULL: ("global_rope_theta", 160_000.0), _SLIDING: ("local_rope_theta", 10_000.0)}


def read_config(values: dict[str, Any]) -> EncoderSpec:
    norm = NormSpec(eps=values.get("norm_eps", 1e-5), bias=values.get("norm_bias", False))
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if width % heads:
        raise UserError(f"width {width} is not a multiple of num_heads {heads}")
    bias, ffn_bias = values.get("attention_bias", False), values.get("mlp_bias", False)
    kinds = _layer_types(values)
    ropes = {kind: _rope(values, kind) for kind in sorted(set(kinds))}
    window = values.get("local_attention", 128) // 2
    ffn = FeedForwardSpec(
        width=values["intermediate_size"],
        activation=activation(values.get("hidden_activation", "gelu")),
        gated=True,
        bias=ffn_bias,
        out_bias=ffn_bias,
    )

    def layer(number: int, kind: str) -> LayerSpec:
        attention = AttentionSpec(
            num_heads=heads,
            num_kv_heads=heads,
            head_size=width // heads,
            bias=bias,
            out_bias=bias,
            window=window if kind == _SLIDING else None,
            rope=ropes[kind],
        )
        return LayerSpec(attention=attention, ffn=ffn, norm=norm, place="pre", attention_norm=number > 0)

    return EncoderSpec(
        width=width,
        max_length=values["max_position_embeddings"],
        embeddings=EmbeddingSpec(vocabulary=values["vocab_size"], norm=norm),
        layers=tuple(layer(number, kind) for number, kind in enumerate(kinds)),
        final_norm=norm,
    )


def _layer_types(values: dict[str, Any]) -> list[str]:
    count, every = values["num_hidden_layers"], values.get("global_attn_every_n_layers", 3)
    kinds = values.get("layer_types") or [_SLIDING if i % every else _FULL for i in range(count)]
    if len(kinds) != count or not set(kinds) <= set(_BASES):
        raise UserError(f"layer_types {kinds!r} is not supported: {count} of {', '.join(_BASES)} are needed")
    return list(kinds)


def _rope(values: dict[str, Any], kind: str) -> RopeSpec:
    """Of one kind of layer, by the keys of transformers 5, or else by the older ones."""
    key, base = _BASES[kind]
    told = dict((values.get("rope_parameters") or {}).get(kind) or {}) | (values.get("rope_scaling") or {})
    lengths = {"max_position_embeddings": values["max_position_embeddings"]}
    return read_rope({"rope_parameters": told, **lengths}, theta=values.get(key) or base)


def write_config(spec: EncoderSpec) -> dict[str, Any]:
    """The config of a checkpoint that reads as ``spec``.

    Raises:
        UserError: what the spec has and the layout cannot say, in one sentence.
    """
    target, layer = "the modernbert layout", spec.layers[0]
    if spec.width != layer.attention.num_heads * layer.attention.head_size:
        raise UserError(f"{target} cannot hold this model: it has heads of size {layer.attention.head_size}")
    parts = [layer.attention for layer in spec.layers]
    kinds = [_FULL if part.window is None else _SLIDING for part in parts]
    ropes = {kind: part.rope for kind, part in zip(kinds, parts, strict=True) if part.rope}
    window = next((part.window for part in parts if part.window is not None), 64)
    values = {
        "model_type": "modernbert",
        "architectures": ["ModernBertModel"],
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": layer.attention.num_heads,
        "intermediate_size": layer.ffn.width,
        "hidden_activation": activation_name(layer.ffn.activation),
        "norm_eps": layer.norm.eps,
        "norm_bias": layer.norm.bias,
        "attention_bias": layer.attention.bias,
        "mlp_bias": layer.ffn.bias,
        "max_position_embeddings": spec.max_length,
        "local_attention": 2 * window,
        "layer_types": kinds,
        "rope_parameters": {kind: write_rope(rope) for kind, rope in ropes.items()},
    }
    require_reads_as(spec, read_config, values, target)
    return values


def names(spec: EncoderSpec) -> Names:
    table: Names = {"word.weight": Stored("embeddings.tok_embeddings.weight")}
    for part in ("weight", "bias"):
        table[f"norm.{part}"] = Stored(f"embeddings.norm.{part}")
        table[f"final_norm.{part}"] = Stored(f"final_norm.{part}")
        for i in range(spec.num_layers):
            layer = f"layers.{i}"
            table |= {
                f"{layer}.attention.qkv.{part}": Stored(f"{layer}.attn.Wqkv.{part}"),
                f"{layer}.attention.out.{part}": Stored(f"{layer}.attn.Wo.{part}"),
                f"{layer}.attention_norm.{part}": Stored(f"{layer}.attn_norm.{part}"),
                f"{layer}.ffn.gate.{part}": Stored(f"{layer}.mlp.Wi.{part}", part=(0, 2)),
                f"{layer}.ffn.up.{part}": Stored(f"{layer}.mlp.Wi.{part}", part=(1, 2)),
                f"{layer}.ffn.down.{part}": Stored(f"{layer}.mlp.Wo.{part}"),
                f"{layer}.ffn_norm.{part}": Stored(f"{layer}.mlp_norm.{part}"),
            }
    return table
