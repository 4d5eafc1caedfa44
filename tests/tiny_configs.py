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
_BERT = {
    "vocab_size": 130, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40,
}  # fmt: skip
_LAYERS = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": _BERT | {"pad_token_id": 0},
    "xlm-roberta": _BERT | {"pad_token_id": 0, "type_vocab_size": 1},
    "camembert": _BERT | {"pad_token_id": 0, "hidden_act": "relu"},
    "data2vec-text": _BERT | {"pad_token_id": 0, "hidden_act": "gelu_new"},
    "distilbert": {
        "vocab_size": 130, "dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 24,
        "max_position_embeddings": 40,
    },
    "mpnet": _BERT,
    "modernbert": _BERT | {"local_attention": 6, "layer_types": _LAYERS, "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 900.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
    }},
    "new": _BERT | {"rope_theta": 50.0, "rope_scaling": {"type": "ntk", "factor": 8.0}},
    "gte": _BERT | {"rope_parameters": {"rope_type": "default", "rope_theta": 400.0}, "type_vocab_size": 0},
    "jina_embeddings_v3": _BERT | {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    "nomic_bert": _BERT | {"head_dim": 8},
    "eurobert": _DECODER | {"rope_parameters": {"rope_type": "default", "rope_theta": 250.0}},
}  # fmt: skip
for _table in (CONFIGS, ENCODERS):
    for _name, _values in _table.items():
        _table[_name] = {"model_type": _name, **_values}
