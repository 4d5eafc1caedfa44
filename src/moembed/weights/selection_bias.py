"""The bias that training may steer a model's routers by: given, and taken away where it says nothing."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moembed.folder.parts import Parts
from moembed.model.encoder import EncoderConfig
from moembed.types import UserError


def add_selection_bias(
    config: EncoderConfig, state: dict[str, Tensor]
) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """The same function with a bias of zeros in every router; a model that has them stays as it is.

    Raises:
        UserError: a model without experts, or whose experts choose.
    """
    moe = config.moe
    if moe is None or moe.router.kind != "token_choice":
        raise UserError(
            "loss.bias_rate needs a model whose tokens choose their experts (upcycle a dense one)"
        )
    if moe.router.selection_bias:
        return config, state
    zeros = {_name(layer): torch.zeros(moe.num_experts) for layer in moe.layers}
    return _with(config, True).model_copy(update={"family": "moembed"}), state | zeros


def without_selection_bias(parts: Parts, target: str) -> Parts:
    """The same model without router biases, for formats that have no place for them.

    Raises:
        UserError: a bias is not zero: without it, tokens would go to other experts.
    """
    moe = parts.config.moe
    if moe is None or not moe.router.selection_bias:
        return parts
    names = {_name(layer) for layer in moe.layers}
    if any(parts.state[name].any() for name in names):
        raise UserError(
            f"{target} cannot hold this model: a bias takes part in its choice of experts (trained with "
            "loss.bias_rate)"
        )
    state = {name: tensor for name, tensor in parts.state.items() if name not in names}
    return replace(parts, config=_with(parts.config, False), state=state)


def _name(layer: int) -> str:
    return f"layers.{layer}.ffn.router.bias_E"


def _with(config: EncoderConfig, bias: bool) -> EncoderConfig:
    assert config.moe is not None
    router = config.moe.router.model_copy(update={"selection_bias": bias})
    return config.model_copy(update={"moe": config.moe.model_copy(update={"router": router})})
