"""A dense encoder with wider feed-forward blocks that gives the same vectors: the larger twin of experts."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from moembed.config import Strict
from moembed.model.block import LayerSpec
from moembed.model.spec import EncoderSpec
from moembed.types import UserError
from moembed.weights.size import require_memory


class WidenConfig(Strict):
    """Layers ``i`` with ``i % every == 1`` get blocks ``factor`` times as wide; 1 means all.

    As ``every`` of upcycling: with ``factor`` k the same layers compute as much as with k experts per token.
    """

    factor: int = Field(default=2, ge=2)
    every: int = Field(default=1, ge=1)


def widen(
    spec: EncoderSpec, state: dict[str, Tensor], options: WidenConfig
) -> tuple[EncoderSpec, dict[str, Tensor]]:
    """Put ``factor`` - 1 copies of the hidden units of a block beside them, which add nothing at first.

    ``y = W_down a(W_up x)`` becomes ``[W_down 0] a([W_up; W_up] x)``: the same to the last bit of every
    product. The zeros get the gradient of the units they were copied from and move apart from then on.

    Raises:
        UserError: the model has experts, shares layers or has too few of them, or would not fit into memory.
    """
    if spec.moe_layers:
        raise UserError("this model has experts: widen makes the dense twin of such a model wider")
    if any(layer.shares is not None for layer in spec.layers):
        raise UserError("this model shares weights between layers, of which widen would change one alone")
    layers = tuple(range(1 % options.every, spec.num_layers, options.every))
    if not layers:
        raise UserError(f"every = {options.every} widens no layer of a model of {spec.num_layers} layers")

    def wider(number: int, layer: LayerSpec) -> LayerSpec:
        if number not in layers:
            return layer
        ffn = layer.ffn.model_copy(update={"width": options.factor * layer.ffn.width})
        return layer.model_copy(update={"ffn": ffn})

    wide = spec.with_layers(wider)
    require_memory(wide, f"blocks {options.factor} times as wide")
    result = dict(state)
    for number in layers:
        for part in ("up", "gate"):
            for kind in ("weight", "bias"):
                name = f"layers.{number}.ffn.{part}.{kind}"
                if name in state:
                    result[name] = torch.cat([state[name]] * options.factor)
        name = f"layers.{number}.ffn.down.weight"
        silent = torch.zeros_like(state[name])
        result[name] = torch.cat([state[name], *[silent] * (options.factor - 1)], dim=1)
    return wide, result
