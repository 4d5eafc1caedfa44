"""The bias that training may steer a model's routers by: given, and taken away where it says nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from moembed.model.spec import EncoderSpec
from moembed.moe.layer import MoESpec
from moembed.types import UserError


def add_selection_bias(spec: EncoderSpec, state: dict[str, Tensor]) -> tuple[EncoderSpec, dict[str, Tensor]]:
    """The same function with a bias of zeros in every router; a model that has them stays as it is.

    Raises:
        UserError: a model without experts, or whose experts choose.
    """
    if not spec.moe_layers or any(
        layer.moe.router.kind != "token_choice" for layer in spec.layers if layer.moe
    ):
        raise UserError(
            "loss.bias_rate needs a model whose tokens choose their experts (upcycle a dense one)"
        )
    zeros = {
        _name(number): torch.zeros(layer.moe.num_experts)
        for number, layer in enumerate(spec.layers)
        if layer.moe and not layer.moe.router.selection_bias
    }
    return (_with(spec, True), state | zeros) if zeros else (spec, state)


def remove_selection_bias(
    spec: EncoderSpec, state: dict[str, Tensor], target: str
) -> tuple[EncoderSpec, dict[str, Tensor]]:
    """The same model without router biases, for formats that have no place for them.

    Raises:
        UserError: a bias is not zero: without it, tokens would go to other experts.
    """
    names = {_name(number) for number in spec.moe_layers} & state.keys()
    if not names:
        return spec, state
    if any(state[name].any() for name in names):
        raise UserError(
            f"{target} cannot hold this model: a bias takes part in its choice of experts (trained with "
            "loss.bias_rate)"
        )
    return _with(spec, False), {name: tensor for name, tensor in state.items() if name not in names}


def _name(layer: int) -> str:
    return f"layers.{layer}.ffn.router.bias_E"


def _with(spec: EncoderSpec, bias: bool) -> EncoderSpec:
    def change(moe: MoESpec) -> MoESpec:
        return moe.model_copy(update={"router": moe.router.model_copy(update={"selection_bias": bias})})

    return spec.with_experts(change)
