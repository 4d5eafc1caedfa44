"""The encoder of T5 and mT5 checkpoints; their decoder is left aside."""

from __future__ import annotations

from typing import Any

from moembed.families.mapping import Names, Stored, activation, activation_name, require_reads_as
from moembed.model.attention import AttentionSpec
from moembed.model.block import LayerSpec
from moembed.model.embeddings import EmbeddingSpec
from moembed.model.norm import NormSpec
from moembed.model.relative_bias import RelativeBias
from moembed.model.spec import EncoderSpec
from moembed.moe.ffn import FeedForwardSpec

KINDS = {"t5": ("T5EncoderModel", "relu"), "mt5": ("MT5EncoderModel", "gated-gelu")}  # and by default


def read_config(values: dict[str, Any]) -> EncoderSpec:
    norm = NormSpec(kind="rms", eps=values.get("layer_norm_epsilon", 1e-6))
    gate, _, name = values.get("feed_forward_proj", KINDS[values["model_type"]][1]).rpartition("-")
    layer = LayerSpec(
        attention=AttentionSpec(
            num_heads=values["num_heads"],
            num_kv_heads=values["num_heads"],
            head_size=values["d_kv"],
            bias=False,
            out_bias=False,
            scale=1.0,
        ),
        ffn=FeedForwardSpec(
            width=values["d_ff"],
            # "gated-gelu" is the approximation, as in transformers; "gelu" alone is exact
            activation=activation("gelu_new" if gate and name == "gelu" else name),
            gated=gate == "gated",
            bias=False,
            out_bias=False,
        ),
        norm=norm,
        place="pre",
    )
    return EncoderSpec(
        width=values["d_model"],
        max_length=values.get("n_positions", 512),
        embeddings=EmbeddingSpec(vocabulary=values["vocab_size"]),
        layers=(layer,) * values["num_layers"],
        relative_bias=RelativeBias(
            buckets=values.get("relative_attention_num_buckets", 32),
            max_distance=values.get("relative_attention_max_distance", 128),
        ),
        final_norm=norm,
    )


def write_config(spec: EncoderSpec, model_type: str) -> dict[str, Any]:
    """The config of a checkpoint that reads as ``spec``.

    Raises:
        UserError: what the spec has and the layout cannot say, in one sentence.
    """
    layer, bias = spec.layers[0], spec.relative_bias or RelativeBias()
    name = activation_name(layer.ffn.activation)
    if layer.ffn.gated:
        name = "gated-gelu" if name == "gelu_new" else f"gated-{name}"
    values = {
        "model_type": model_type,
        "architectures": [KINDS[model_type][0]],
        "vocab_size": spec.vocab_size,
        "d_model": spec.width,
        "d_kv": layer.attention.head_size,
        "d_ff": layer.ffn.width,
        "num_layers": spec.num_layers,
        "num_heads": layer.attention.num_heads,
        "relative_attention_num_buckets": bias.buckets,
        "relative_attention_max_distance": bias.max_distance,
        "layer_norm_epsilon": layer.norm.eps,
        "feed_forward_proj": name,
        "n_positions": spec.max_length,
    }
    require_reads_as(spec, read_config, values, f"the {model_type} layout")
    return values


def names(spec: EncoderSpec) -> Names:
    first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    table: Names = {
        "word.weight": Stored("shared.weight"),
        "relative_bias.weight": Stored(first),
        "final_norm.weight": Stored("encoder.final_layer_norm.weight"),
    }
    for i, layer in enumerate(spec.layers):
        ours, theirs = f"layers.{i}", f"encoder.block.{i}.layer"
        table |= {
            f"{ours}.attention.qkv.weight": Stored(*(f"{theirs}.0.SelfAttention.{x}.weight" for x in "qkv")),
            f"{ours}.attention.out.weight": Stored(f"{theirs}.0.SelfAttention.o.weight"),
            f"{ours}.attention_norm.weight": Stored(f"{theirs}.0.layer_norm.weight"),
            f"{ours}.ffn_norm.weight": Stored(f"{theirs}.1.layer_norm.weight"),
        }
        parts = (
            {"up": "wi_1", "gate": "wi_0", "down": "wo"} if layer.ffn.gated else {"up": "wi", "down": "wo"}
        )
        for mine, theirs_too in parts.items():
            table[f"{ours}.ffn.{mine}.weight"] = Stored(f"{theirs}.1.DenseReluDense.{theirs_too}.weight")
    return table
