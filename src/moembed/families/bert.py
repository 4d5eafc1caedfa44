"""BERT, RoBERTa, XLM-RoBERTa, CamemBERT and data2vec-text checkpoints: config keys and tensor names."""

from __future__ import annotations

from typing import Any

from moembed.families.flat import flatten, read_flat
from moembed.families.mapping import Names, Stored, activation, activation_name, require_same
from moembed.model.spec import EncoderSpec
from moembed.types import UserError

CLASSES = {  # by model_type; all but the first count positions from pad_token_id + 1
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "camembert": "CamembertModel",
    "data2vec-text": "Data2VecTextModel",
}


def read_config(values: dict[str, Any]) -> EncoderSpec:
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(f"position_embedding_type {values['position_embedding_type']!r} is not supported")
    if values.get("is_decoder"):
        raise UserError("is_decoder true is not supported: an embedding reads in both directions")
    flat = {
        "vocab_size": values["vocab_size"],
        "width": values["hidden_size"],
        "num_layers": values["num_hidden_layers"],
        "num_heads": values["num_attention_heads"],
        "ffn_width": values["intermediate_size"],
        "activation": activation(values.get("hidden_act", "gelu")),
        "norm_eps": values.get("layer_norm_eps", 1e-12),
        "max_positions": values["max_position_embeddings"],
        "position_offset": 0 if values["model_type"] == "bert" else values["pad_token_id"] + 1,
        "num_token_types": values.get("type_vocab_size", 2),
    }
    return read_flat(flat)


def write_config(spec: EncoderSpec, model_type: str) -> dict[str, Any]:
    """The config of a checkpoint that reads as ``spec``.

    Raises:
        UserError: what the spec has and the layout cannot say, in one sentence.
    """
    target = f"the {model_type} layout"
    flat = flatten(spec, target)
    bert = model_type == "bert"
    values = {
        "model_type": model_type,
        "architectures": [CLASSES[model_type]],
        "vocab_size": flat.vocab_size,
        "hidden_size": flat.width,
        "num_hidden_layers": flat.num_layers,
        "num_attention_heads": flat.num_heads,
        "intermediate_size": flat.ffn_width,
        "hidden_act": activation_name(flat.activation),
        "layer_norm_eps": flat.norm_eps,
        "max_position_embeddings": flat.max_positions,
        "type_vocab_size": flat.num_token_types,
        "pad_token_id": 0 if bert else flat.position_offset - 1,
        "position_embedding_type": "absolute",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    require_same(spec, read_config(values), target)
    return values


def names(spec: EncoderSpec) -> Names:
    table: Names = {
        "word.weight": Stored("embeddings.word_embeddings.weight"),
        "position.weight": Stored("embeddings.position_embeddings.weight"),
        "token_type.weight": Stored("embeddings.token_type_embeddings.weight"),
    }
    for part in ("weight", "bias"):
        table[f"norm.{part}"] = Stored(f"embeddings.LayerNorm.{part}")
        for i in range(spec.num_layers):
            ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
            table |= {
                f"{ours}.attention.qkv.{part}": Stored(
                    *(f"{theirs}.attention.self.{x}.{part}" for x in ("query", "key", "value"))
                ),
                f"{ours}.attention.out.{part}": Stored(f"{theirs}.attention.output.dense.{part}"),
                f"{ours}.attention_norm.{part}": Stored(f"{theirs}.attention.output.LayerNorm.{part}"),
                f"{ours}.ffn.up.{part}": Stored(f"{theirs}.intermediate.dense.{part}"),
                f"{ours}.ffn.down.{part}": Stored(f"{theirs}.output.dense.{part}"),
                f"{ours}.ffn_norm.{part}": Stored(f"{theirs}.output.LayerNorm.{part}"),
            }
    return table
