"""A model as llama.cpp computes it, still in our own terms: what a file can lose is lost here, measurably."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from moembed.export.nomic import to_nomic
from moembed.families.bert import write_config as write_bert
from moembed.folder.parts import Parts
from moembed.model.block import LayerSpec
from moembed.model.head import HeadConfig
from moembed.model.pooling import PoolingConfig
from moembed.model.spec import EncoderSpec
from moembed.types import UserError

POOLING = ("mean", "cls")


def as_graph(parts: Parts, fold_expert_bias: bool) -> tuple[str, Parts]:
    """The architecture's name and the model that its graph computes: GELU by tanh, no expert bias.

    The config of a family must be able to say the model, and `_require` what its graph makes of that: so a
    field of the spec that neither knows is refused.

    Raises:
        UserError: what the graph cannot express, all of it in one sentence.
    """
    rotary = parts.spec.embeddings.positions is None
    if rotary or parts.spec.moe_layers:
        try:
            parts = to_nomic(parts)
        except UserError as error:
            raise UserError(
                f"llama.cpp runs rotary models and experts in the Nomic layout: {error}"
            ) from None
    parts = replace(parts, spec=parts.spec.without_noise())
    spec, state = parts.spec, dict(parts.state)
    nomic = "nomic-bert" if spec.layers[0].ffn.gated else "nomic-bert-moe"
    architecture = nomic if rotary else "bert"
    _require(spec, parts.pooling, architecture)
    if parts.head != HeadConfig():
        raise UserError(
            "llama.cpp reads no dense layers and no experts behind pooling, and this model has some"
        )
    for layer in spec.moe_layers:
        bias_D = state.pop(f"layers.{layer}.ffn.bias_D")
        if fold_expert_bias and bias_D.any():
            state |= _folded(state, f"layers.{layer}", bias_D)

    def computed(_: int, layer: LayerSpec) -> LayerSpec:
        changes: dict[str, Any] = {}
        if layer.ffn.activation == "gelu":
            changes["ffn"] = layer.ffn.model_copy(update={"activation": "gelu_tanh"})
        if layer.moe:
            changes["moe"] = layer.moe.model_copy(update={"bias": "none"})
        return layer.model_copy(update=changes)

    return architecture, replace(parts, spec=spec.with_layers(computed), state=state, source={})


def _require(spec: EncoderSpec, pooling: PoolingConfig, architecture: str) -> None:
    layer, moe = spec.layers[0], spec.moe
    gated, activation = layer.ffn.gated, layer.ffn.activation
    plain = activation in ("gelu", "gelu_tanh")
    unsayable = {
        "pre-norm blocks": layer.place == "pre",
        f"activation {activation!r} in plain blocks (GELU is known)": not gated and not plain,
        f"activation {activation!r} in gated blocks (SiLU is known)": gated and activation != "silu",
        "gated blocks beside absolute positions": gated and architecture == "bert",
        "biases in gated blocks": gated and layer.ffn.bias,
        "gated experts": gated and moe is not None,
        "shared experts": moe is not None and moe.num_shared_experts > 0,
        "expert weights divided by their norm (router.normalize null keeps the raw probabilities it takes)": (
            moe is not None and moe.router.normalize is not None
        ),
        f"pooling {pooling.name!r} (known: {', '.join(POOLING)})": pooling.name not in POOLING,
        "pooling that leaves the prompt out (include_prompt false)": not pooling.include_prompt,
    }
    if found := [what for what, true in unsayable.items() if true]:
        raise UserError(f"llama.cpp's {architecture} graph cannot run this model: it has {'; '.join(found)}")
    if architecture == "bert":  # what came this far in another way went through the Nomic config
        offset = spec.embeddings.positions.offset if spec.embeddings.positions else 0
        write_bert(spec, "roberta" if offset else "bert")


def _folded(state: dict[str, Tensor], layer: str, bias_D: Tensor) -> dict[str, Tensor]:
    gain_D, offset_D = (state[f"{layer}.attention_norm.{part}"].double() for part in ("weight", "bias"))
    shift_D, one_D = fold(gain_D, offset_D, bias_D.double())
    changed = {f"{layer}.attention_norm.bias": offset_D + shift_D}
    for name in (f"{layer}.ffn.router.weight_ED", f"{layer}.ffn.up_EFD"):
        weight = state[name].double()
        changed[name] = weight - (weight @ shift_D)[..., None] * one_D
    return {name: tensor.float() for name, tensor in changed.items()}


def fold(gain_D: Tensor, offset_D: Tensor, bias_D: Tensor) -> tuple[Tensor, Tensor]:
    """Move the bias of ``y = norm2(h + moe(h) + bias)`` into norm1's offset.

    norm1 gives ``h = gain * z + offset`` with centred z, ``sum(z) = 0``. So ``u = 1 / gain`` has the product
    ``u·offset`` with every h: on these states a linear map without bias can express a constant. Let norm1
    give ``h + s`` instead, ``s = bias + t``. The residual then carries the bias, and the number t vanishes in
    norm2, which centres. A map W that reads h becomes ``W - (W s) oᵀ`` with ``o = u / (u·(offset + s))``; it
    takes ``h + s`` to ``W h``. This is exact for every t that leaves the divisor non-zero, and
    ``|t| = rms(bias)`` with the sign that moves the divisor away from zero keeps the maps small.

    Returns:
        ``shift_D`` (s) and ``one_D`` (o): ``one_D · (h + shift_D) = 1`` for every h.
    """
    u_D = 1 / gain_D
    if not gain_D.all():  # there h is its offset, whatever the text: the limit of 1 / gain, rescaled
        u_D = (gain_D == 0).to(gain_D.dtype)
    away = 1 if u_D @ (offset_D + bias_D) * u_D.sum() >= 0 else -1
    shift_D = bias_D + away * bias_D.square().mean().sqrt()
    return shift_D, u_D / (u_D @ (offset_D + shift_D))
