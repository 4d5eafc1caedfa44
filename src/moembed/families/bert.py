"""BERT, RoBERTa and XLM-RoBERTa checkpoints: config keys and tensor names."""

from __future__ import annotations

from typing import Any

from moembed.families.mapping import Names, Stored, activation, activation_name
from moembed.model.encoder import EncoderConfig
from moembed.types import UserError


def read_config(values: dict[str, Any]) -> EncoderConfig:
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(f"position_embedding_type {values['position_embedding_type']!r} is not supported")
    if values.get("is_decoder"):
        raise UserError("is_decoder true is not supported: an embedding reads in both directions")
    model_type = values["model_type"]
    return EncoderConfig(
        family=model_type,
        vocab_size=values["vocab_size"],
        width=values["hidden_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        ffn_width=values["intermediate_size"],
        activation=activation(values.get("hidden_act", "gelu")),
        norm_eps=values.get("layer_norm_eps", 1e-12),
        max_positions=values["max_position_embeddings"],
        position_offset=0 if model_type == "bert" else values["pad_token_id"] + 1,
        num_token_types=values.get("type_vocab_size", 2),
    )


def write_config(config: EncoderConfig) -> dict[str, Any]:
    bert = config.family == "bert"
    return {
        "model_type": config.family,
        "architectures": [
            {"bert": "BertModel", "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel"}[config.family]
        ],
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_width,
        "hidden_act": activation_name(config.activation),
        "layer_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.num_token_types,
        "pad_token_id": 0 if bert else config.position_offset - 1,
        "position_embedding_type": "absolute",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }


def names(config: EncoderConfig) -> Names:
    table: Names = {
        "word.weight": Stored("embeddings.word_embeddings.weight"),
        "position.weight": Stored("embeddings.position_embeddings.weight"),
        "token_type.weight": Stored("embeddings.token_type_embeddings.weight"),
    }
    for part in ("weight", "bias"):
        table[f"norm.{part}"] = Stored(f"embeddings.LayerNorm.{part}")
        for i in range(config.num_layers):
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
