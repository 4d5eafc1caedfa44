"""DistilBERT checkpoints (Sanh et al., arXiv 1910.01108): BERT without token types, by other names."""

from __future__ import annotations

from typing import Any

from moembed.families.flat import flatten, read_flat
from moembed.families.mapping import Names, Stored, activation, activation_name, require_same
from moembed.model.spec import EncoderSpec

_NORM_EPS = 1e-12  # no key says it


def read_config(values: dict[str, Any]) -> EncoderSpec:
    return read_flat(
        {
            "vocab_size": values["vocab_size"],
            "width": values["dim"],
            "num_layers": values["n_layers"],
            "num_heads": values["n_heads"],
            "ffn_width": values["hidden_dim"],
            "activation": activation(values.get("activation", "gelu")),
            "norm_eps": _NORM_EPS,
            "max_positions": values.get("max_position_embeddings", 512),
            "num_token_types": 0,
        }
    )


def write_config(spec: EncoderSpec) -> dict[str, Any]:
    """The config of a checkpoint that reads as ``spec``.

    Raises:
        UserError: what the spec has and the layout cannot say, in one sentence.
    """
    target = "the distilbert layout"
    flat = flatten(spec, target)
    values = {
        "model_type": "distilbert",
        "architectures": ["DistilBertModel"],
        "vocab_size": flat.vocab_size,
        "dim": flat.width,
        "n_layers": flat.num_layers,
        "n_heads": flat.num_heads,
        "hidden_dim": flat.ffn_width,
        "activation": activation_name(flat.activation),
        "max_position_embeddings": flat.max_positions,
        "sinusoidal_pos_embds": False,
        "pad_token_id": 0,
        "dropout": 0.1,
        "attention_dropout": 0.1,
    }
    require_same(spec, read_config(values), target)
    return values


def names(spec: EncoderSpec) -> Names:
    table: Names = {
        "word.weight": Stored("embeddings.word_embeddings.weight"),
        "position.weight": Stored("embeddings.position_embeddings.weight"),
    }
    for part in ("weight", "bias"):
        table[f"norm.{part}"] = Stored(f"embeddings.LayerNorm.{part}")
        for i in range(spec.num_layers):
            ours, theirs = f"layers.{i}", f"transformer.layer.{i}"
            table |= {
                f"{ours}.attention.qkv.{part}": Stored(
                    *(f"{theirs}.attention.{x}_lin.{part}" for x in "qkv")
                ),
                f"{ours}.attention.out.{part}": Stored(f"{theirs}.attention.out_lin.{part}"),
                f"{ours}.attention_norm.{part}": Stored(f"{theirs}.sa_layer_norm.{part}"),
                f"{ours}.ffn.up.{part}": Stored(f"{theirs}.ffn.lin1.{part}"),
                f"{ours}.ffn.down.{part}": Stored(f"{theirs}.ffn.lin2.{part}"),
                f"{ours}.ffn_norm.{part}": Stored(f"{theirs}.output_layer_norm.{part}"),
            }
    return table
