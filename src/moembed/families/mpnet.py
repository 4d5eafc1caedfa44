"""MPNet checkpoints (Song et al., arXiv 2004.09297): RoBERTa's layers with a relative bias that all share."""

from __future__ import annotations

from typing import Any

from moembed.families.flat import flatten, read_flat
from moembed.families.mapping import Names, Stored, activation, activation_name, require_same
from moembed.model.relative_bias import RelativeBias
from moembed.model.spec import EncoderSpec
from moembed.types import UserError

_BIAS = RelativeBias(buckets=32, max_distance=128)  # whatever the config says, the published code counts so
_OFFSET = 2  # of the first position: the published code takes the id of padding for 1


def read_config(values: dict[str, Any]) -> EncoderSpec:
    if (buckets := values.get("relative_attention_num_buckets", 32)) != _BIAS.buckets:
        raise UserError(f"relative_attention_num_buckets {buckets!r} is not supported (known: 32)")
    flat = {
        "vocab_size": values["vocab_size"],
        "width": values["hidden_size"],
        "num_layers": values["num_hidden_layers"],
        "num_heads": values["num_attention_heads"],
        "ffn_width": values["intermediate_size"],
        "activation": activation(values.get("hidden_act", "gelu")),
        "norm_eps": values.get("layer_norm_eps", 1e-12),
        "max_positions": values.get("max_position_embeddings", 512),
        "position_offset": _OFFSET,
        "num_token_types": 0,
    }
    return read_flat(flat).replace(relative_bias=_BIAS)


def write_config(spec: EncoderSpec) -> dict[str, Any]:
    """The config of a checkpoint that reads as ``spec``.

    Raises:
        UserError: what the spec has and the layout cannot say, in one sentence.
    """
    target = "the mpnet layout"
    if spec.relative_bias is None:
        raise UserError(f"{target} cannot hold this model: it has no relative bias of the scores")
    flat = flatten(spec.replace(relative_bias=None), target)
    values = {
        "model_type": "mpnet",
        "architectures": ["MPNetModel"],
        "vocab_size": flat.vocab_size,
        "hidden_size": flat.width,
        "num_hidden_layers": flat.num_layers,
        "num_attention_heads": flat.num_heads,
        "intermediate_size": flat.ffn_width,
        "hidden_act": activation_name(flat.activation),
        "layer_norm_eps": flat.norm_eps,
        "max_position_embeddings": flat.max_positions,
        "relative_attention_num_buckets": _BIAS.buckets,
        "pad_token_id": 1,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    require_same(spec, read_config(values), target)
    return values


def names(spec: EncoderSpec) -> Names:
    table: Names = {
        "word.weight": Stored("embeddings.word_embeddings.weight"),
        "position.weight": Stored("embeddings.position_embeddings.weight"),
        "relative_bias.weight": Stored("encoder.relative_attention_bias.weight"),
    }
    for part in ("weight", "bias"):
        table[f"norm.{part}"] = Stored(f"embeddings.LayerNorm.{part}")
        for i in range(spec.num_layers):
            ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
            table |= {
                f"{ours}.attention.qkv.{part}": Stored(
                    *(f"{theirs}.attention.attn.{x}.{part}" for x in "qkv")
                ),
                f"{ours}.attention.out.{part}": Stored(f"{theirs}.attention.attn.o.{part}"),
                f"{ours}.attention_norm.{part}": Stored(f"{theirs}.attention.LayerNorm.{part}"),
                f"{ours}.ffn.up.{part}": Stored(f"{theirs}.intermediate.dense.{part}"),
                f"{ours}.ffn.down.{part}": Stored(f"{theirs}.output.dense.{part}"),
                f"{ours}.ffn_norm.{part}": Stored(f"{theirs}.output.LayerNorm.{part}"),
            }
    return table
