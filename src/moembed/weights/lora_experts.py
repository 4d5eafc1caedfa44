"""LoRA experts made of a dense block, and made into full ones for what knows no other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from moembed.model.spec import EncoderSpec
from moembed.moe.ffn import FeedForwardSpec
from moembed.moe.layer import MoESpec
from moembed.moe.lora import LoraSpec, parts, shapes, whole


def lora_start(
    dense: Mapping[str, Tensor], width: int, ffn: FeedForwardSpec, moe: MoESpec, generator: torch.Generator
) -> dict[str, Tensor]:
    """The tensors of one layer: the dense block, for every expert A drawn at random and B of zeros.

    A is uniform within ``1 / sqrt(inputs)``, as the reference code of LoRA draws it, and of another draw for
    each expert: equal experts with equal A would have equal gradients.

    Args:
        dense: the tensors of the block by name, as ``up.weight``.
    """
    assert moe.lora is not None
    made: dict[str, Tensor] = {}
    for part in parts(width, ffn):
        weight, bias = dense[f"{part.name}.weight"], dense.get(f"{part.name}.bias")
        for name, shape in shapes(part, moe.num_experts, moe.lora, moe.bias == "each").items():
            made[name] = torch.zeros(shape, dtype=weight.dtype)
        made[part.shared].copy_(weight)
        if part.bias in made and bias is not None:  # a part of the block that has none keeps zeros
            made[part.bias].copy_(bias)
        made[part.first].uniform_(-1, 1, generator=generator).mul_(part.inputs**-0.5)
    return made


def full_experts(spec: EncoderSpec, state: Mapping[str, Tensor]) -> tuple[EncoderSpec, dict[str, Tensor]]:
    """The same function with every expert's matrices in full; a model without LoRA experts stays as it is."""
    result = dict(state)
    for number in spec.moe_layers:
        layer = spec.layers[number]
        if layer.moe is not None and layer.moe.lora is not None:
            _write_out(result, f"layers.{number}.ffn.", spec.width, layer.ffn, layer.moe, layer.moe.lora)
    return spec.with_experts(lambda moe: moe.model_copy(update={"lora": None})), result


def _write_out(
    state: dict[str, Tensor], prefix: str, width: int, ffn: FeedForwardSpec, moe: MoESpec, lora: LoraSpec
) -> None:
    for part in parts(width, ffn):
        state[prefix + part.whole] = whole(part, lora, lambda name: state[prefix + name])
        for name in (part.shared, part.first, part.second):
            del state[prefix + name]
        if (bias := state.pop(prefix + part.bias, None)) is not None:
            letters = part.bias.rpartition("_")[2]
            state[f"{prefix}{part.name}_bias_E{letters}"] = bias.repeat(moe.num_experts, 1)
