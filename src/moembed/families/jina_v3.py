"""Jina Embeddings v3 in the layout of transformers: XLM-RoBERTa with rotary positions (arXiv 2409.10173).

Its adapters for tasks are folders of their own. The older layout, which calls itself ``xlm-roberta`` and
brings code that mixes adapters into every matrix, is refused.
"""

from __future__ import annotations

from typing import Any

from moembed.families.flat import flatten, read_flat
from moembed.families.mapping import Names, Stored, activation, activation_name, require_reads_as
from moembed.families.rotary import read_rope
from moembed.model.spec import EncoderSpec
from moembed.types import UserError

NAME = "jina_embeddings_v3"


def read_config(values: dict[str, Any]) -> EncoderSpec:
    rope = read_rope(values, theta=20_000.0)
    flat = {
        "vocab_size": values["vocab_size"],
        "width": values["hidden_size"],
        "num_layers": values["num_hidden_layers"],
        "num_heads": values["num_attention_heads"],
        "ffn_width": values["intermediate_size"],
        "activation": activation(values.get("hidden_act", "gelu")),
        "norm_eps": values.get("layer_norm_eps", 1e-5),
        "position": "rope",
        "rope_base": rope.base,
        "max_positions": values["max_position_embeddings"],
        "num_token_types": values.get("type_vocab_size", 1),
    }
    if rope.scaling != 1 or rope.bands:
        raise UserError("scaled rotary positions are not supported in this layout")
    return read_flat(flat)


def write_config(spec: EncoderSpec) -> dict[str, Any]:
    """The config of a checkpoint that reads as ``spec``.

    Raises:
        UserError: what the spec has and the layout cannot say, in one sentence.
    """
    target = f"the {NAME} layout"
    flat = flatten(spec, target)
    if flat.position != "rope" or flat.num_token_types == 0:
        raise UserError(f"{target} cannot hold this model: it needs rotary positions and token types")
    values = {
        "model_type": NAME,
        "architectures": ["JinaEmbeddingsV3Model"],
        "vocab_size": flat.vocab_size,
        "hidden_size": flat.width,
        "num_hidden_layers": flat.num_layers,
        "num_attention_heads": flat.num_heads,
        "intermediate_size": flat.ffn_width,
        "hidden_act": activation_name(flat.activation),
        "layer_norm_eps": flat.norm_eps,
        "max_position_embeddings": flat.max_positions,
        "type_vocab_size": flat.num_token_types,
        "pad_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": flat.rope_base},
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    require_reads_as(spec, read_config, values, target)
    return values


def names(spec: EncoderSpec) -> Names:
    table: Names = {
        "word.weight": Stored("embeddings.word_embeddings.weight"),
        "token_type.weight": Stored("embeddings.token_type_embeddings.weight"),
    }
    for part in ("weight", "bias"):
        table[f"norm.{part}"] = Stored(f"emb_ln.{part}")
        for i in range(spec.num_layers):
            ours, theirs = f"layers.{i}", f"encoder.layers.{i}"
            table |= {
                f"{ours}.attention.qkv.{part}": Stored(f"{theirs}.mixer.Wqkv.{part}"),
                f"{ours}.attention.out.{part}": Stored(f"{theirs}.mixer.out_proj.{part}"),
                f"{ours}.attention_norm.{part}": Stored(f"{theirs}.norm1.{part}"),
                f"{ours}.ffn.up.{part}": Stored(f"{theirs}.mlp.fc1.{part}"),
                f"{ours}.ffn.down.{part}": Stored(f"{theirs}.mlp.fc2.{part}"),
                f"{ours}.ffn_norm.{part}": Stored(f"{theirs}.norm2.{part}"),
            }
    return table
