"""Gemma and Gemma 3 checkpoints of text alone, EmbeddingGemma among them, read as encoders.

Beside what Llama has: words scaled by the root of the width, norms that multiply by ``1 + weight``, and in
Gemma 3 norms before and behind each part, normed heads, and layers with a window that have a rotary base of
their own. They are causal unless ``use_bidirectional_attention`` (Gemma 3) is true, or ``is_causal`` false.
"""

from __future__ import annotations

from typing import Any

from moembed.families import decoder
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

KINDS = {"gemma": "GemmaModel", "gemma3_text": "Gemma3TextModel"}
_SANDWICH = {"attention_out_norm": "post_attention", "ffn_norm": "pre_feedforward"}
_SANDWICH |= {"ffn_out_norm": "post_feedforward"}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_BASES = {_FULL: ("rope_theta", 1_000_000.0), _SLIDING: ("rope_local_base_freq", 10_000.0)}


def read_config(values: dict[str, Any]) -> EncoderSpec:
    gemma3, width = values["model_type"] == "gemma3_text", values["hidden_size"]
    norm = NormSpec(kind="rms", eps=values.get("rms_norm_eps", 1e-6), plus_one=True)
    head_size, bias = values.get("head_dim", 256), bool(values.get("attention_bias"))
    by = values.get("query_pre_attn_scalar", 256) if gemma3 else head_size
    if (softcap := values.get("attn_logit_softcapping")) or not by > 0:
        raise UserError(f"attn_logit_softcapping {softcap} with query_pre_attn_scalar {by} is not supported")
    attention = AttentionSpec(
        num_heads=values["num_attention_heads"],
        num_kv_heads=values.get("num_key_value_heads", 4 if gemma3 else 16),
        head_size=head_size,
        bias=bias,
        out_bias=bias,
        qk_norm=norm if gemma3 else None,
        scale=None if by == head_size else by**-0.5,
        causal=not _sees_all(values, gemma3),
    )
    name = values.get("hidden_activation" if gemma3 else "hidden_act") or "gelu_pytorch_tanh"
    # the first Gemma was published with "gelu" and runs with its approximation, as in transformers
    act = activation("gelu_pytorch_tanh" if name == "gelu" and not gemma3 else name)
    plain = {"activation": act, "gated": True, "bias": False, "out_bias": False}
    ffn = FeedForwardSpec(width=values["intermediate_size"], **plain)
    layer = LayerSpec(attention=attention, ffn=ffn, norm=norm, place="sandwich" if gemma3 else "pre")
    kinds = _layer_types(values) if gemma3 else [None] * values["num_hidden_layers"]
    size = values.get("sliding_window", 4096) or 0
    window = size // 2 if values.get("use_bidirectional_attention") else size - 1

    def of(kind: str | None) -> LayerSpec:
        own = {"window": window if kind == _SLIDING else None, "rope": _rope(values, kind)}
        return layer.model_copy(update={"attention": attention.model_copy(update=own)})

    return EncoderSpec(
        width=width,
        max_length=values.get("max_position_embeddings", 131072 if gemma3 else 8192),
        embeddings=EmbeddingSpec(vocabulary=values["vocab_size"], scale=width**0.5),
        layers=tuple(map(of, kinds)),
        final_norm=norm,
    )


def _sees_all(values: dict[str, Any], gemma3: bool) -> bool:
    told, key = bool(values.get("use_bidirectional_attention")), values.get("is_causal") is False
    if gemma3 and key and not told:
        raise UserError("is_causal false is not supported: say use_bidirectional_attention true instead")
    if told and not gemma3:
        raise UserError("use_bidirectional_attention is not supported here: say is_causal false instead")
    return told or key


def _layer_types(values: dict[str, Any]) -> list[str | None]:
    count, every = values["num_hidden_layers"], values.get("sliding_window_pattern", 6)
    types = values.get("layer_types") or [_SLIDING if (i + 1) % every else _FULL for i in range(count)]
    if len(types) != count or not set(types) <= {_FULL, _SLIDING}:
        raise UserError(f"layer_types {types!r} is not supported")
    if _SLIDING in types and not (values.get("sliding_window", 4096) or 0) > 1:
        raise UserError(f"sliding_window {values['sliding_window']!r} is not supported")
    return list(types)


def _rope(values: dict[str, Any], kind: str | None) -> RopeSpec:
    if kind is None:
        return read_rope(values)
    told = dict((values.get("rope_parameters") or {}).get(kind) or {})
    told |= (values.get("rope_scaling") or {}) if kind == _FULL else {}  # the older name
    key, base = _BASES[kind]
    told.setdefault("rope_theta", values.get(key, base))
    return read_rope(
        {"max_position_embeddings": values.get("max_position_embeddings", 131072)} | {"rope_parameters": told}
    )


def write_config(spec: EncoderSpec, model_type: str) -> dict[str, Any]:
    """The config of a checkpoint that reads as ``spec``.

    Raises:
        UserError: what the spec has and the layout cannot say, in one sentence.
    """
    layer, gemma3 = spec.layers[0], model_type == "gemma3_text"
    attention = layer.attention
    values: dict[str, Any] = {
        "model_type": model_type,
        "architectures": [KINDS[model_type]],
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_size,
        "intermediate_size": layer.ffn.width,
        "hidden_activation" if gemma3 else "hidden_act": activation_name(layer.ffn.activation),
        "rms_norm_eps": layer.norm.eps,
        "max_position_embeddings": spec.max_length,
        "attention_bias": attention.bias,
        "rope_scaling": None,
    }
    ropes = {_FULL: attention.rope, _SLIDING: attention.rope}
    for part in (layer.attention for layer in spec.layers):
        ropes[_SLIDING if part.window is not None else _FULL] = part.rope
    told = {kind: write_rope(rope) for kind, rope in ropes.items() if rope}
    if gemma3:
        windows = [x.attention.window for x in spec.layers]
        for window in (w for w in windows if w is not None):
            values["sliding_window"] = window + 1 if attention.causal else 2 * window
        values |= {
            "layer_types": [_FULL if w is None else _SLIDING for w in windows],
            "use_bidirectional_attention": not attention.causal,
            "query_pre_attn_scalar": round((attention.scale or attention.head_size**-0.5) ** -2),
            "rope_parameters": told,
        }
    else:
        values |= {"rope_parameters": told[_FULL]} if told else {}
        values |= {} if attention.causal else {"is_causal": False}
    require_reads_as(spec, read_config, values, f"the {model_type} layout")
    return values


def names(spec: EncoderSpec) -> Names:
    table = decoder.names(spec)
    for i in (i for i, layer in enumerate(spec.layers) if layer.place == "sandwich"):
        for ours, theirs in _SANDWICH.items():
            table[f"layers.{i}.{ours}.weight"] = Stored(f"layers.{i}.{theirs}_layernorm.weight")
    return table
