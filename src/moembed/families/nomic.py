"""NomicBERT checkpoints: dense v1 and v1.5, and the Mixture of Experts of Nomic Embed v2.

The published config comes in two spellings: Nomic's own (``n_embd`` …, the only one with experts) and that of
transformers' native class (``hidden_size`` …, dense and gated only).
"""

from __future__ import annotations

from typing import Any, Literal

from moembed.families.flat import FlatConfig, FlatMoE, flatten, read_flat
from moembed.families.mapping import Names, Stored, activation, require_same
from moembed.model.spec import EncoderSpec
from moembed.moe.ffn import Activation
from moembed.moe.router_config import RouterConfig
from moembed.types import UserError

TARGET = "the Nomic layout"
_ACTIVATIONS: dict[str, tuple[Activation, bool]] = {  # and whether it gates
    "gelu": ("gelu", False),
    "swiglu": ("silu", True),
    "geglu": ("gelu", True),
}
_FIXED = {  # what we compute; absent, null, false and 0 mean the same
    "use_rms_norm": False,
    "causal": False,
    "parallel_block": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "expert_choice_router": False,
    "ffn_div": 1,
    "moe_impl": "megablocks",
}


def read_config(values: dict[str, Any]) -> EncoderSpec:
    read = _read_published if "n_embd" in values else _read_native
    return read_flat({"position": "rope"} | read(values))


def _read_published(values: dict[str, Any]) -> dict[str, Any]:
    for key, value in _FIXED.items():
        if (values.get(key, value) or None) != (value or None):
            raise UserError(f"NomicBERT with {key} = {values[key]!r} is not supported")
    if values["mlp_fc1_bias"] != values["mlp_fc2_bias"]:
        raise UserError("NomicBERT with mlp_fc1_bias different from mlp_fc2_bias is not supported")
    name = values["activation_function"]
    if name not in _ACTIVATIONS:  # their code would take every name it does not know for gelu
        known = ", ".join(_ACTIVATIONS)
        raise UserError(f"NomicBERT with activation_function = {name!r} is not supported (known: {known})")
    act, gated = _ACTIVATIONS[name]
    return {
        "vocab_size": values["vocab_size"],
        "width": values["n_embd"],
        "num_layers": values["n_layer"],
        "num_heads": values["n_head"],
        "ffn_width": values["n_inner"],
        "activation": act,
        "gated": gated,
        "attention_bias": values["qkv_proj_bias"],
        "ffn_bias": values["mlp_fc1_bias"],
        "norm": "pre" if values.get("prenorm") else "post",
        "norm_eps": values["layer_norm_epsilon"],
        "max_positions": values["n_positions"],
        "rope_base": values["rotary_emb_base"],
        "num_token_types": values.get("type_vocab_size", 0),
        "moe": _read_moe(values) if values.get("num_experts") else None,
    }


def _read_moe(values: dict[str, Any]) -> FlatMoE:
    """Experts sit in the layers ``i % moe_every_n_layers == 1``; shared ones are counted among all."""
    experts, top_k, every = (values[key] for key in ("num_experts", "moe_top_k", "moe_every_n_layers"))
    shared = values.get("num_shared_experts") or 0
    if every < 2:
        raise UserError(
            f"moe_every_n_layers = {every} with num_experts = {experts} leaves no layer with experts: the "
            "published rule takes those with i % moe_every_n_layers == 1, so set it to 2 or more"
        )
    if not shared < top_k <= experts:
        raise UserError(
            f"moe_top_k = {top_k} must be more than num_shared_experts = {shared} and at most "
            f"num_experts = {experts}, for it counts the shared experts too"
        )
    if values["activation_function"] == "geglu":
        raise UserError("activation_function = 'geglu' with experts is not supported: theirs gate by swiglu")
    power = float(values.get("moe_normalize_expert_weights") or 0) or None
    return FlatMoE(
        layers=tuple(i for i in range(values["n_layer"]) if i % every == 1),
        num_experts=experts - shared,
        num_shared_experts=shared,
        shared_weight="mean",
        bias="shared",
        router=RouterConfig(top_k=top_k - shared, normalize=power),
    )


def _read_native(values: dict[str, Any]) -> dict[str, Any]:
    rope = values.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"rope_type {rope['rope_type']!r} is not supported")
    act = activation(values.get("hidden_act", "silu"))
    if act not in ("silu", "gelu"):
        raise UserError(f"NomicBERT with hidden_act = {values['hidden_act']!r} is not supported")
    if values.get("num_experts"):
        raise UserError("this config mixes transformers' NomicBERT keys with experts, which it cannot have")
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if (size := values.get("head_dim")) is not None and size * heads != width:
        raise UserError(f"NomicBERT with head_dim = {size} is not supported: {heads} heads make {width}")
    return {
        "vocab_size": values["vocab_size"],
        "width": width,
        "num_layers": values["num_hidden_layers"],
        "num_heads": heads,
        "ffn_width": values["intermediate_size"],
        "activation": act,
        "gated": True,
        "attention_bias": False,
        "ffn_bias": False,
        "norm_eps": values.get("layer_norm_eps", 1e-12),
        "max_positions": values.get("max_position_embeddings", 2048),
        "rope_base": rope.get("rope_theta", 1000.0),
        "num_token_types": values.get("type_vocab_size", 2),
    }


def write_config(spec: EncoderSpec) -> dict[str, Any]:
    """The config in Nomic's spelling, and where it can say as much in that of transformers too.

    Raises:
        UserError: all that the model has and the layout cannot say, in one sentence.
    """
    if found := [what for what, is_so in _unsayable(spec).items() if is_so]:
        raise UserError(f"{TARGET} cannot hold this model: it has {'; '.join(found)}")
    flat = flatten(spec, TARGET)
    values = {
        "model_type": "nomic_bert",
        "architectures": ["NomicBertModel"],
        "vocab_size": flat.vocab_size,
        "n_embd": flat.width,
        "n_layer": flat.num_layers,
        "n_head": flat.num_heads,
        "n_inner": flat.ffn_width,
        "n_positions": flat.max_positions,
        "max_trained_positions": flat.max_positions,
        "activation_function": _activation_function(spec),
        "qkv_proj_bias": flat.attention_bias,
        "mlp_fc1_bias": flat.ffn_bias,
        "mlp_fc2_bias": flat.ffn_bias,
        "layer_norm_epsilon": flat.norm_eps,
        "rotary_emb_base": flat.rope_base,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "type_vocab_size": flat.num_token_types,
        "prenorm": flat.norm == "pre",
        "use_rms_norm": None,
        "causal": False,
        "parallel_block": False,
    }
    if flat.moe:
        values |= _write_moe(flat.moe, flat.num_layers)
    elif _is_native(flat):
        values |= _write_native(flat)
    require_same(spec, read_config(values), TARGET)
    return values


def _unsayable(spec: EncoderSpec) -> dict[str, bool]:
    """What people meet most, in words; `require_same` names the rest by field."""
    ffn = spec.layers[0].ffn
    unsayable = {
        "absolute positions (the layout has rotary ones alone)": spec.embeddings.positions is not None,
        f"the activation {ffn.activation}{', gated' * ffn.gated}": _activation_function(spec) is None,
    }
    if moe := spec.moe:
        unsayable |= {
            "biases inside its experts (upcycle with --published)": moe.bias == "each",
            "no bias on the output of its experts": moe.bias == "none",
            f"a router of kind {moe.router.kind}": moe.router.kind != "token_choice",
            "shared experts that are added, not averaged": moe.num_shared_experts > 0
            and moe.shared_weight == "sum",
        }
    return unsayable


def _activation_function(spec: EncoderSpec) -> str | None:
    meaning = (spec.layers[0].ffn.activation, spec.layers[0].ffn.gated)
    name = next((name for name, known in _ACTIVATIONS.items() if known == meaning), None)
    return None if name == "geglu" and spec.moe else name


def _is_native(flat: FlatConfig) -> bool:
    plain = not flat.attention_bias and not flat.ffn_bias and flat.num_token_types > 0
    return flat.gated and plain and flat.norm == "post"


def _write_native(flat: FlatConfig) -> dict[str, Any]:
    """The same in the words of transformers' native class, so that AutoModel reads the folder too."""
    return {
        "hidden_size": flat.width,
        "num_hidden_layers": flat.num_layers,
        "num_attention_heads": flat.num_heads,
        "intermediate_size": flat.ffn_width,
        "hidden_act": flat.activation,
        "max_position_embeddings": flat.max_positions,
        "layer_norm_eps": flat.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": flat.rope_base},
    }


def _write_moe(moe: FlatMoE, num_layers: int) -> dict[str, Any]:
    power = moe.router.normalize
    return {
        "num_experts": moe.num_experts + moe.num_shared_experts,
        "moe_top_k": moe.router.top_k + moe.num_shared_experts,
        "moe_every_n_layers": every_n_layers(moe.layers, num_layers),
        "moe_normalize_expert_weights": False if power is None else power,
        "num_shared_experts": moe.num_shared_experts,
        "expert_choice_router": False,
        "ffn_div": 1,
        "moe_impl": "megablocks",
    }


def every_n_layers(layers: tuple[int, ...], num_layers: int) -> int:
    """The n for which ``i % n == 1`` picks exactly these layers.

    Raises:
        UserError: there is none.
    """
    for every in range(2, num_layers + 2):
        if layers == tuple(i for i in range(num_layers) if i % every == 1):
            return every
    raise UserError(
        f"{TARGET} cannot hold experts in the layers {list(layers)}: it has them in all i with "
        "i % n == 1 (upcycle with every = 2 does so)"
    )


def names(spec: EncoderSpec) -> Names:
    table: Names = {
        "word.weight": Stored("embeddings.word_embeddings.weight"),
        "token_type.weight": Stored("embeddings.token_type_embeddings.weight"),
        "norm.weight": Stored("emb_ln.weight"),
        "norm.bias": Stored("emb_ln.bias"),
    }
    for i, layer in enumerate(spec.layers):
        ours, theirs = f"layers.{i}", f"encoder.layers.{i}"
        for part in ("weight", "bias"):
            table |= {
                f"{ours}.attention.qkv.{part}": Stored(f"{theirs}.attn.Wqkv.{part}"),
                f"{ours}.attention.out.{part}": Stored(f"{theirs}.attn.out_proj.{part}"),
                f"{ours}.attention_norm.{part}": Stored(f"{theirs}.norm1.{part}"),
                f"{ours}.ffn_norm.{part}": Stored(f"{theirs}.norm2.{part}"),
            }
        block = _moe_names if layer.moe else _dense_names
        table |= block(f"{ours}.ffn", f"{theirs}.mlp", layer.ffn.gated)
    return table


def _dense_names(ours: str, theirs: str, gated: bool) -> Names:
    parts = {"up": "fc11", "gate": "fc12", "down": "fc2"} if gated else {"up": "fc1", "down": "fc2"}
    return {
        f"{ours}.{x}.{part}": Stored(f"{theirs}.{y}.{part}")
        for x, y in parts.items()
        for part in ("weight", "bias")
    }


def _moe_names(ours: str, theirs: str, gated: bool) -> Names:
    """MegaBlocks' names; in a gated expert w1 is the gate and v1 the value."""
    experts: Literal["experts"] = "experts"
    table = {
        f"{ours}.router.weight_ED": Stored(f"{theirs}.router.layer.weight"),
        f"{ours}.down_EDF": Stored(f"{theirs}.experts.mlp.w2", form="experts_transposed"),
        f"{ours}.bias_D": Stored(f"{theirs}.experts.bias"),
    }
    if gated:
        table[f"{ours}.gate_EFD"] = Stored(f"{theirs}.experts.mlp.w1", form=experts)
        table[f"{ours}.up_EFD"] = Stored(f"{theirs}.experts.mlp.v1", form=experts)
    else:
        table[f"{ours}.up_EFD"] = Stored(f"{theirs}.experts.mlp.w1", form=experts)
    for x, y in {"up": "up_proj", "gate": "gate_proj", "down": "down_proj"}.items():
        for part in ("weight", "bias"):
            table[f"{ours}.shared.{x}.{part}"] = Stored(f"{theirs}.shared_expert.{y}.{part}")
    return table
