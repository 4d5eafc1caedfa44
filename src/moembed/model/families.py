"""Config keys and tensor names of the checkpoint families we read and write.

A family is three functions: its ``config.json`` to our ``EncoderConfig``, back again, and a table
``{our tensor: their tensors}``, where several of theirs are stacked along the first axis to make one of ours
(q, k, v). One table serves reading, writing and checking. Our own layout, ``moembed``, is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from moembed.config import validate
from moembed.model.encoder import Encoder, EncoderConfig
from moembed.model.ffn import Activation
from moembed.types import UserError

Names = dict[str, tuple[str, ...]]

_ACTIVATION: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_GATES: dict[Activation, str] = {"silu": "swiglu", "gelu": "geglu"}  # NomicBERT's words for gated blocks


@dataclass(frozen=True)
class Family:
    read_config: Callable[[dict[str, Any]], EncoderConfig]
    write_config: Callable[[EncoderConfig], dict[str, Any]]
    names: Callable[[EncoderConfig], Names]
    prefixes: tuple[str, ...] = ("",)  # what a task head's checkpoint puts before every name


# ---- BERT, RoBERTa, XLM-RoBERTa ---------------------------------------------------------------------------


def _read_bert(values: dict[str, Any]) -> EncoderConfig:
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
        activation=_activation(values.get("hidden_act", "gelu")),
        norm_eps=values.get("layer_norm_eps", 1e-12),
        max_positions=values["max_position_embeddings"],
        position_offset=0 if model_type == "bert" else values["pad_token_id"] + 1,
        num_token_types=values.get("type_vocab_size", 2),
    )


def _write_bert(config: EncoderConfig) -> dict[str, Any]:
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
        "hidden_act": _their(config.activation),
        "layer_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.num_token_types,
        "pad_token_id": 0 if bert else config.position_offset - 1,
        "position_embedding_type": "absolute",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }


def _bert_names(config: EncoderConfig) -> Names:
    names: Names = {
        "word.weight": ("embeddings.word_embeddings.weight",),
        "position.weight": ("embeddings.position_embeddings.weight",),
        "token_type.weight": ("embeddings.token_type_embeddings.weight",),
    }
    for part in ("weight", "bias"):
        names[f"norm.{part}"] = (f"embeddings.LayerNorm.{part}",)
        for i in range(config.num_layers):
            ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
            names |= {
                f"{ours}.attention.qkv.{part}": tuple(
                    f"{theirs}.attention.self.{x}.{part}" for x in ("query", "key", "value")
                ),
                f"{ours}.attention.out.{part}": (f"{theirs}.attention.output.dense.{part}",),
                f"{ours}.attention_norm.{part}": (f"{theirs}.attention.output.LayerNorm.{part}",),
                f"{ours}.ffn.up.{part}": (f"{theirs}.intermediate.dense.{part}",),
                f"{ours}.ffn.down.{part}": (f"{theirs}.output.dense.{part}",),
                f"{ours}.ffn_norm.{part}": (f"{theirs}.output.LayerNorm.{part}",),
            }
    return names


# ---- NomicBERT v1, v1.5 (dense) ---------------------------------------------------------------------------


def _read_nomic(values: dict[str, Any]) -> EncoderConfig:
    """Both spellings of the config: the published one (``n_embd`` …), transformers' (``hidden_size`` …)."""
    if values.get("num_experts"):
        raise UserError(
            "this is the published Nomic MoE layout, which is not read yet; dense NomicBERT models are"
        )
    if "n_embd" not in values:
        rope = values.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default":
            raise UserError(f"rope_type {rope['rope_type']!r} is not supported")
        activation = _activation(values.get("hidden_act", "silu"))
        if activation not in _GATES:
            raise UserError(f"NomicBERT with hidden_act = {values['hidden_act']!r} is not supported")
        return EncoderConfig(
            family="nomic_bert",
            vocab_size=values["vocab_size"],
            width=values["hidden_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=values["num_attention_heads"],
            ffn_width=values["intermediate_size"],
            activation=activation,
            gated=True,
            attention_bias=False,
            ffn_bias=False,
            norm_eps=values.get("layer_norm_eps", 1e-12),
            position="rope",
            max_positions=values.get("max_position_embeddings", 2048),
            rope_base=rope.get("rope_theta", 1000.0),
            num_token_types=values.get("type_vocab_size", 2),
        )
    expected = {
        "prenorm": False,
        "use_rms_norm": False,
        "causal": False,
        "parallel_block": False,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
    }
    for key, value in expected.items():
        if (values.get(key) or None) != (value or None):
            raise UserError(f"NomicBERT with {key} = {values.get(key)!r} is not supported")
    if values["mlp_fc1_bias"] != values["mlp_fc2_bias"]:
        raise UserError("NomicBERT with mlp_fc1_bias different from mlp_fc2_bias is not supported")
    name = values["activation_function"]
    gate = next((ours for ours, theirs in _GATES.items() if theirs == name), None)
    return EncoderConfig(
        family="nomic_bert",
        vocab_size=values["vocab_size"],
        width=values["n_embd"],
        num_layers=values["n_layer"],
        num_heads=values["n_head"],
        ffn_width=int(values["n_inner"]),
        activation=gate or _activation(name),
        gated=gate is not None,
        attention_bias=values["qkv_proj_bias"],
        ffn_bias=values["mlp_fc1_bias"],
        norm_eps=values["layer_norm_epsilon"],
        position="rope",
        max_positions=values["n_positions"],
        rope_base=values["rotary_emb_base"],
        num_token_types=values.get("type_vocab_size", 0),
    )


def _write_nomic(config: EncoderConfig) -> dict[str, Any]:
    return {
        "model_type": "nomic_bert",
        "architectures": ["NomicBertModel"],
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.ffn_width,
        "n_positions": config.max_positions,
        "activation_function": _GATES[config.activation] if config.gated else _their(config.activation),
        "qkv_proj_bias": config.attention_bias,
        "mlp_fc1_bias": config.ffn_bias,
        "mlp_fc2_bias": config.ffn_bias,
        "layer_norm_epsilon": config.norm_eps,
        "rotary_emb_base": config.rope_base,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "type_vocab_size": config.num_token_types,
        "prenorm": False,
        "causal": False,
        # The same facts in the words of transformers' native class, so that AutoModel reads this folder too.
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_width,
        "hidden_act": "gelu" if config.activation == "gelu" else "silu",
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
    }


def _nomic_names(config: EncoderConfig) -> Names:
    names: Names = {
        "word.weight": ("embeddings.word_embeddings.weight",),
        "token_type.weight": ("embeddings.token_type_embeddings.weight",),
    }
    ffn = {"up": "fc11", "gate": "fc12", "down": "fc2"} if config.gated else {"up": "fc1", "down": "fc2"}
    for part in ("weight", "bias"):
        names[f"norm.{part}"] = (f"emb_ln.{part}",)
        for i in range(config.num_layers):
            ours, theirs = f"layers.{i}", f"encoder.layers.{i}"
            names |= {
                f"{ours}.attention.qkv.{part}": (f"{theirs}.attn.Wqkv.{part}",),
                f"{ours}.attention.out.{part}": (f"{theirs}.attn.out_proj.{part}",),
                f"{ours}.attention_norm.{part}": (f"{theirs}.norm1.{part}",),
                f"{ours}.ffn_norm.{part}": (f"{theirs}.norm2.{part}",),
            }
            names |= {f"{ours}.ffn.{x}.{part}": (f"{theirs}.mlp.{y}.{part}",) for x, y in ffn.items()}
    return names


# ---- our own ----------------------------------------------------------------------------------------------


def _read_own(values: dict[str, Any]) -> EncoderConfig:
    return validate(EncoderConfig, values["encoder"])


def _write_own(config: EncoderConfig) -> dict[str, Any]:
    return {"model_type": "moembed", "encoder": config.model_dump(mode="json")}


def _own_names(config: EncoderConfig) -> Names:
    with torch.device("meta"):
        return {name: (name,) for name in Encoder(config).state_dict()}


_BERT = Family(_read_bert, _write_bert, _bert_names, prefixes=("", "bert.", "roberta."))
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "nomic_bert": Family(_read_nomic, _write_nomic, _nomic_names, prefixes=("", "bert.", "nomic_bert.")),
    "moembed": Family(_read_own, _write_own, _own_names),
}


def family_of(values: dict[str, Any]) -> Family:
    model_type = values.get("model_type")
    if model_type not in FAMILIES:
        raise UserError(f"unknown model_type {model_type!r} (known: {', '.join(FAMILIES)})")
    return FAMILIES[model_type]


def _activation(name: str) -> Activation:
    if name not in _ACTIVATION:
        raise UserError(f"activation {name!r} is not supported (known: {', '.join(_ACTIVATION)})")
    return _ACTIVATION[name]


def _their(activation: Activation) -> str:
    return next(theirs for theirs, ours in _ACTIVATION.items() if ours == activation)
