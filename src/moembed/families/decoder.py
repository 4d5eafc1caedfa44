"""Llama, Mistral, Qwen2 and Qwen3 checkpoints: language models that are read as encoders.

They are causal, a token sees those before it, unless ``is_causal`` is false in ``config.json``: transformers
reads the same key, and masks nothing then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moembed.families.mapping import Names, Stored, activation, activation_name, require_reads_as
from moembed.families.rotary import read_rope, write_rope
from moembed.model.attention import AttentionSpec
from moembed.model.block import LayerSpec
from moembed.model.embeddings import EmbeddingSpec
from moembed.model.norm import NormSpec
from moembed.model.spec import EncoderSpec
from moembed.moe.ffn import FeedForwardSpec
from moembed.types import UserError


@dataclass(frozen=True)
class Kind:
    """What the code of a family settles, and what a key means that its config leaves out.

    ``bias``: of queries, keys and values, and of what follows them; None: ``attention_bias`` says it of both.
    """

    architecture: str
    max_length: int
    bias: tuple[bool, bool] | None = None
    qk_norm: bool = False
    head_size: int | None = None  # None: the width, split among the heads
    kv_heads: int | None = None  # None: as many as there are heads
    norm_eps: float = 1e-6
    causal: bool = True


KINDS = {
    "llama": Kind("LlamaModel", 2048),
    "mistral": Kind("MistralModel", 131072, bias=(False, False), kv_heads=8),
    "qwen2": Kind("Qwen2Model", 32768, bias=(True, False), kv_heads=32),
    "qwen3": Kind("Qwen3Model", 32768, qk_norm=True, head_size=128, kv_heads=32),
    "eurobert": Kind("EuroBertModel", 8192, norm_eps=1e-5, causal=False),
}
_PLAIN = ("llama", "eurobert")  # without windows, and with mlp_bias


def read_config(values: dict[str, Any]) -> EncoderSpec:
    kind, width, heads = KINDS[values["model_type"]], values["hidden_size"], values["num_attention_heads"]
    norm = NormSpec(kind="rms", eps=values.get("rms_norm_eps", kind.norm_eps))
    bias, out_bias = kind.bias or (bool(values.get("attention_bias")),) * 2
    causal = kind.causal and values.get("is_causal") is not False
    attention = AttentionSpec(
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads", kind.kv_heads) or heads,
        head_size=values.get("head_dim") or kind.head_size or width // heads,
        bias=bias,
        out_bias=out_bias,
        qk_norm=norm if kind.qk_norm else None,
        causal=causal,
        rope=read_rope(values),
    )
    act = activation(values.get("hidden_act", "silu"))
    biased = bool(values.get("mlp_bias")) and values["model_type"] in _PLAIN
    ffn = {"width": values["intermediate_size"], "bias": biased, "out_bias": biased}
    block = FeedForwardSpec(activation=act, gated=True, **ffn)
    layer = LayerSpec(attention=attention, ffn=block, norm=norm, place="pre")
    return EncoderSpec(
        width=width,
        max_length=values.get("max_position_embeddings", kind.max_length),
        embeddings=EmbeddingSpec(vocabulary=values["vocab_size"]),
        layers=tuple(
            layer.model_copy(update={"attention": attention.model_copy(update={"window": window})})
            for window in _windows(values, causal)
        ),
        final_norm=norm,
    )


def _windows(values: dict[str, Any], causal: bool) -> list[int | None]:
    """How far every layer sees. A sliding window counts the token itself where it is causal."""
    name, count = values["model_type"], values["num_hidden_layers"]
    size = values.get("sliding_window", 4096)
    types = values.get("layer_types")
    if name in _PLAIN or (name == "mistral" and size is None):
        sliding = [False] * count
    elif name == "mistral":
        sliding = [True] * count
    else:
        size = size if values.get("use_sliding_window") else None
        first = values.get("max_window_layers", 28) if size is not None else count
        types = types or ["sliding_attention" if i >= first else "full_attention" for i in range(count)]
        sliding = [kind == "sliding_attention" for kind in types]
    names = ["sliding_attention" if slides else "full_attention" for slides in sliding]
    if types not in (None, names) or (any(sliding) and not size) or len(names) != count:
        raise UserError(f"layer_types {types!r} with sliding_window {size!r} is not supported")
    return [size - causal if slides else None for slides in sliding]


def write_config(spec: EncoderSpec, model_type: str) -> dict[str, Any]:
    """The config of a checkpoint that reads as ``spec``.

    Raises:
        UserError: what the spec has and the layout cannot say, in one sentence.
    """
    kind, layer = KINDS[model_type], spec.layers[0]
    attention = layer.attention
    windows = [layer.attention.window for layer in spec.layers]
    size = next((window + attention.causal for window in windows if window is not None), None)
    values = {
        "model_type": model_type,
        "architectures": [kind.architecture],
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_size,
        "intermediate_size": layer.ffn.width,
        "hidden_act": activation_name(layer.ffn.activation),
        "rms_norm_eps": layer.norm.eps,
        "max_position_embeddings": spec.max_length,
        "attention_bias": attention.bias,
        "mlp_bias": layer.ffn.bias,
        "rope_scaling": None,
        **({"rope_parameters": write_rope(attention.rope)} if attention.rope else {}),
        **({} if attention.causal or not kind.causal else {"is_causal": False}),
        "sliding_window": size,
        "use_sliding_window": size is not None,
    }
    if model_type.startswith("qwen"):
        values["layer_types"] = [f"{'full' if w is None else 'sliding'}_attention" for w in windows]
    require_reads_as(spec, read_config, values, f"the {model_type} layout")
    return values


def names(spec: EncoderSpec) -> Names:
    table: Names = {"word.weight": Stored("embed_tokens.weight"), "final_norm.weight": Stored("norm.weight")}
    for i, layer in enumerate(spec.layers):
        ours = theirs = f"layers.{i}"
        attention = layer.attention
        rows = [count * attention.head_size for count in (attention.num_heads, attention.num_kv_heads)]
        table |= {
            f"{ours}.attention_norm.weight": Stored(f"{theirs}.input_layernorm.weight"),
            f"{ours}.ffn_norm.weight": Stored(f"{theirs}.post_attention_layernorm.weight"),
            f"{ours}.attention.query_norm.weight": Stored(f"{theirs}.self_attn.q_norm.weight"),
            f"{ours}.attention.key_norm.weight": Stored(f"{theirs}.self_attn.k_norm.weight"),
        }
        for part in ("weight", "bias"):
            projections = (f"{theirs}.self_attn.{x}_proj.{part}" for x in "qkv")
            table[f"{ours}.attention.qkv.{part}"] = Stored(*projections, rows=(*rows, rows[1]))
            table[f"{ours}.attention.out.{part}"] = Stored(f"{theirs}.self_attn.o_proj.{part}")
            for x in ("up", "gate", "down"):
                table[f"{ours}.ffn.{x}.{part}"] = Stored(f"{theirs}.mlp.{x}_proj.{part}")
    return table
