"""Tiny NomicBERT checkpoints in the published layout, and what they compute, one token at a time in float64.

Written from the description of the published model alone; nothing here uses moembed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend

Tensors = dict[str, np.ndarray]
MAX_LENGTH = 12
PROMPTS = {"query": "query: ", "passage": "document: "}
CONFIG: dict[str, Any] = {  # the keys of the published config.json, at a small size
    "activation_function": "gelu", "add_pooling_layer": False, "architectures": ["NomicBertModel"],
    "attn_pdrop": 0.0, "bos_token_id": None, "causal": False, "dense_seq_output": True, "embd_pdrop": 0.1,
    "eos_token_id": None, "expert_choice_router": False, "ffn_div": 1, "fused_bias_fc": True,
    "fused_dropout_add_ln": True, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "max_trained_positions": 40, "mlp_fc1_bias": True, "mlp_fc2_bias": True, "model_type": "nomic_bert",
    "moe_every_n_layers": 2, "moe_impl": "megablocks", "moe_normalize_expert_weights": False,
    "moe_resid_pdrop": 0.0, "moe_top_k": 2, "n_embd": 16, "n_head": 2, "n_inner": 24, "n_layer": 4,
    "n_positions": 40, "num_experts": 4, "num_shared_experts": 0, "pad_token_id": 0,
    "pad_vocab_size_multiple": 64, "parallel_block": False, "prenorm": False, "qkv_proj_bias": True,
    "rotary_emb_base": 10000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None, "rotary_scaling_factor": None, "router_aux_loss_coef": 0.1,
    "torch_dtype": "float32", "type_vocab_size": 1, "use_rms_norm": None, "vocab_size": 128,
}  # fmt: skip
V2_SIZE = {"n_embd": 768, "n_head": 12, "n_inner": 3072, "n_layer": 12, "n_positions": 2048}
V2_SIZE |= {"max_trained_positions": 2048, "num_experts": 8, "vocab_size": 250048, "pad_token_id": 1}
V1_5 = {"num_experts": 0, "activation_function": "swiglu", "qkv_proj_bias": False, "mlp_fc1_bias": False}
V1_5 |= {"mlp_fc2_bias": False, "layer_norm_epsilon": 1e-12, "rotary_emb_base": 1000, "type_vocab_size": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "top 1": {"moe_top_k": 1},
    "top 3": {"moe_top_k": 3},
    "every third layer": {"moe_every_n_layers": 3, "n_layer": 5},
    "one shared expert": {"num_experts": 5, "moe_top_k": 3, "num_shared_experts": 1},
    "two shared experts, one routed": {"num_experts": 5, "moe_top_k": 3, "num_shared_experts": 2},
    "shared and gated": {"num_experts": 5, "num_shared_experts": 1, "activation_function": "swiglu"},
    "normalised: true": {"moe_normalize_expert_weights": True},
    "normalised: 1": {"moe_normalize_expert_weights": 1},
    "normalised: 2": {"moe_normalize_expert_weights": 2},
    "normalised, shared": {"moe_normalize_expert_weights": 2, "num_experts": 5, "moe_top_k": 3}
    | {"num_shared_experts": 1},
    "gated experts": {"activation_function": "swiglu"},
    "prenorm": {"prenorm": True},
    "prenorm, shared, gated": {"prenorm": True, "num_shared_experts": 1, "activation_function": "swiglu"},
    "prenorm, dense": {"prenorm": True, "num_experts": 0, "n_layer": 3},
    "other rotary base": {"rotary_emb_base": 37.0},
    "large epsilon": {"layer_norm_epsilon": 0.1},
    "no token types": {"type_vocab_size": 0},
    "no biases": {"qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False},
    "dense, gated, as v1.5": V1_5,
    "dense, gated by gelu": V1_5 | {"activation_function": "geglu"},
    "dense, plain": {"num_experts": 0},
}


def is_moe(values: dict[str, Any], layer: int) -> bool:
    return values["num_experts"] > 0 and layer % values["moe_every_n_layers"] == 1


def gated(values: dict[str, Any]) -> bool:
    return values["activation_function"] in ("swiglu", "geglu")


def make_tensors(values: dict[str, Any], seed: int = 0) -> Tensors:
    """Every tensor of the checkpoint by its published name and shape, float32, none of them zero."""
    D, F, shared = values["n_embd"], values["n_inner"], values["num_shared_experts"]
    experts = values["num_experts"] - shared
    shapes: dict[str, tuple[int, ...]] = {"embeddings.word_embeddings.weight": (values["vocab_size"], D)}
    if values["type_vocab_size"]:
        shapes["embeddings.token_type_embeddings.weight"] = (values["type_vocab_size"], D)
    norms = ["emb_ln"]

    def linear(name: str, into: int, out: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (out, into)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    for i in range(values["n_layer"]):
        layer = f"encoder.layers.{i}"
        norms += [f"{layer}.norm1", f"{layer}.norm2"]
        linear(f"{layer}.attn.Wqkv", D, 3 * D, values["qkv_proj_bias"])
        linear(f"{layer}.attn.out_proj", D, D, values["qkv_proj_bias"])
        if is_moe(values, i):
            shapes[f"{layer}.mlp.router.layer.weight"] = (experts, D)
            for matrix in ("w1", "v1", "w2") if gated(values) else ("w1", "w2"):
                shapes[f"{layer}.mlp.experts.mlp.{matrix}"] = (experts * F, D)
            shapes[f"{layer}.mlp.experts.bias"] = (D,)
            if shared:
                for name in ("up_proj", "gate_proj") if gated(values) else ("up_proj",):
                    linear(f"{layer}.mlp.shared_expert.{name}", D, shared * F, True)
                linear(f"{layer}.mlp.shared_expert.down_proj", shared * F, D, True)
        else:
            for name in ("fc11", "fc12") if gated(values) else ("fc1",):
                linear(f"{layer}.mlp.{name}", D, F, values["mlp_fc1_bias"])
            linear(f"{layer}.mlp.fc2", F, D, values["mlp_fc2_bias"])
    shapes |= {f"{norm}.{part}": (D,) for norm in norms for part in ("weight", "bias")}
    random = np.random.default_rng(seed)
    tensors = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    for norm in norms:
        tensors[f"{norm}.weight"] += 1
    return tensors


def write(folder: Path, values: dict[str, Any], tensors: Tensors, backend: Backend) -> Path:
    """The whole folder; tensors are stored in the dtype that the config names."""
    folder.mkdir(parents=True)
    files: dict[str, Any] = {
        "config.json": values,
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": MAX_LENGTH, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": PROMPTS, "default_prompt_name": None},
    }
    (folder / "1_Pooling").mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    backend.save(str(folder / "tokenizer.json"))
    dtype = getattr(torch, values["torch_dtype"])
    save_file(
        {name: torch.from_numpy(array).to(dtype) for name, array in tensors.items()},
        folder / "model.safetensors",
    )
    return folder


# ---- the slow reference --------------------------------------------------------------------------


def token_row(backend: Backend, text: str, prompt: str = "") -> list[int]:
    """Prompt and text between their special tokens, cut so that both specials stay."""
    first, *middle, last = backend.encode(prompt + text).ids
    return [first, *middle[: MAX_LENGTH - 2], last]


def embedding(values: dict[str, Any], tensors: Tensors, row: list[int], dim: int | None = None) -> np.ndarray:
    """Mean over all tokens, the first ``dim`` coordinates, length 1."""
    mean = np.mean(last_states(values, tensors, row), axis=0)[:dim]
    return mean / math.sqrt(sum(x * x for x in mean))


def last_states(values: dict[str, Any], tensors: Tensors, row: list[int]) -> list[np.ndarray]:
    w = {name: array.astype(np.float64) for name, array in tensors.items()}
    states = [w["embeddings.word_embeddings.weight"][token] for token in row]
    if values["type_vocab_size"]:
        states = [x + w["embeddings.token_type_embeddings.weight"][0] for x in states]
    eps = values["layer_norm_epsilon"]
    states = [_norm(w, "emb_ln", x, eps) for x in states]
    outputs = states
    for i in range(values["n_layer"]):
        layer = f"encoder.layers.{i}"
        if values["prenorm"]:
            attended = _attention(values, w, layer, [_norm(w, f"{layer}.norm1", x, eps) for x in states])
            states = [x + a for x, a in zip(states, attended, strict=True)]
            outputs = [_mlp(values, w, i, _norm(w, f"{layer}.norm2", x, eps)) for x in states]
            states = [x + y for x, y in zip(states, outputs, strict=True)]
        else:
            attended = _attention(values, w, layer, states)
            states = [_norm(w, f"{layer}.norm1", x + a, eps) for x, a in zip(states, attended, strict=True)]
            states = [_norm(w, f"{layer}.norm2", x + _mlp(values, w, i, x), eps) for x in states]
            outputs = states
    return outputs  # with prenorm: of the last block its MLP alone, without the residual


def _norm(w: Tensors, name: str, x: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.sum() / len(x)
    variance = (centred * centred).sum() / len(x)
    return centred / math.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def _linear(w: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0.0)


def _attention(values: dict[str, Any], w: Tensors, layer: str, states: list[np.ndarray]) -> list[np.ndarray]:
    D, heads = values["n_embd"], values["n_head"]
    size = D // heads
    qkv = [_linear(w, f"{layer}.attn.Wqkv", x) for x in states]
    mixed = [np.zeros(D) for _ in states]
    for head in range(heads):
        at = head * size
        queries = [_turn(values, x[at : at + size], p) for p, x in enumerate(qkv)]
        keys = [_turn(values, x[D + at : D + at + size], p) for p, x in enumerate(qkv)]
        for here, query in enumerate(queries):
            weights = [math.exp(float(query @ key) / math.sqrt(size)) for key in keys]
            for there, x in enumerate(qkv):
                value = x[2 * D + at : 2 * D + at + size]
                mixed[here][at : at + size] += weights[there] / sum(weights) * value
    return [_linear(w, f"{layer}.attn.out_proj", x) for x in mixed]


def _turn(values: dict[str, Any], x: np.ndarray, position: int) -> np.ndarray:
    """Coordinates i and i + half are one point in a plane, turned by position * base^(-2i / size)."""
    half, turned = len(x) // 2, np.zeros(len(x))
    for i in range(half):
        angle = position * values["rotary_emb_base"] ** (-2 * i / len(x))
        turned[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        turned[i + half] = x[i] * math.sin(angle) + x[i + half] * math.cos(angle)
    return turned


def _activate(values: dict[str, Any], x: np.ndarray) -> np.ndarray:
    if values["activation_function"] == "swiglu":
        return np.array([v / (1 + math.exp(-v)) for v in x])
    return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def _mlp(values: dict[str, Any], w: Tensors, i: int, x: np.ndarray) -> np.ndarray:
    mlp = f"encoder.layers.{i}.mlp"
    if is_moe(values, i):
        return _experts(values, w, mlp, x)
    if gated(values):
        inner = _linear(w, f"{mlp}.fc11", x) * _activate(values, _linear(w, f"{mlp}.fc12", x))
    else:
        inner = _activate(values, _linear(w, f"{mlp}.fc1", x))
    return _linear(w, f"{mlp}.fc2", inner)


def _experts(values: dict[str, Any], w: Tensors, mlp: str, x: np.ndarray) -> np.ndarray:
    shared, F = values["num_shared_experts"], values["n_inner"]
    logits = w[f"{mlp}.router.layer.weight"] @ x
    probability = np.exp(logits) / np.exp(logits).sum()
    top_k = values["moe_top_k"] - shared
    chosen = sorted(range(len(probability)), key=lambda e: -probability[e])[:top_k]
    weights = [probability[e] for e in chosen]
    if power := values["moe_normalize_expert_weights"]:
        norm = sum(weight**power for weight in weights) ** (1 / power)
        weights = [weight / norm for weight in weights]
    routed = np.zeros(len(x))
    for e, weight in zip(chosen, weights, strict=True):
        rows = slice(e * F, (e + 1) * F)
        inner = _activate(values, w[f"{mlp}.experts.mlp.w1"][rows] @ x)
        if gated(values):
            inner = inner * (w[f"{mlp}.experts.mlp.v1"][rows] @ x)
        routed += weight * (inner @ w[f"{mlp}.experts.mlp.w2"][rows])
    routed += w[f"{mlp}.experts.bias"]
    if not shared:
        return routed
    block = f"{mlp}.shared_expert"
    inner = _linear(w, f"{block}.up_proj", x)
    if gated(values):
        inner = _activate(values, _linear(w, f"{block}.gate_proj", x)) * inner
    else:
        inner = _activate(values, inner)
    return (top_k * routed + _linear(w, f"{block}.down_proj", inner)) / (top_k + 1)
