"""A ``config.json`` of every family whose layers are not of one flat kind, as small as it can be."""

from __future__ import annotations

from typing import Any

CLASSES = {  # of transformers, by model_type
    "llama": "LlamaModel",
    "mistral": "MistralModel",
    "qwen2": "Qwen2Model",
    "qwen3": "Qwen3Model",
    "gemma": "GemmaModel",
    "gemma3_text": "Gemma3TextModel",
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
}
_DECODER = {
    "vocab_size": 130, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 40,
}  # fmt: skip
_T5 = {"vocab_size": 130, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _DECODER | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "mistral": _DECODER | {"sliding_window": 3},
    "qwen2": _DECODER,
    "qwen3": _DECODER | {"head_dim": 8},
    "gemma": _DECODER | {"head_dim": 8},
    "gemma3_text": _DECODER | {"head_dim": 8, "query_pre_attn_scalar": 5, "sliding_window": 3}
    | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "t5": _T5 | {"n_positions": 40},
    "mt5": _T5 | {"n_positions": 40},
}  # fmt: skip
for _name, _values in CONFIGS.items():
    CONFIGS[_name] = {"model_type": _name, **_values}
