"""The form in which an encoder serves on a CPU: every matrix of its blocks packed, and in memory once.

``pack`` takes the matrices out of their parameters and puts `moembed.inference.packed` ones beside them;
``unpack`` puts them back, bit for bit. While packed, a parameter keeps its shape and holds NaN: what reads it
by mistake shows. ``int8`` rounds for good: weights and the vocabulary table once, activations at every
product; routers, norms, biases and attention stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moembed.inference.packed import FloatMatrix, Int8Matrix, Int8Table, Linear, Tiled
from moembed.moe.ffn import Activation, FeedForward
from moembed.moe.layer import MoE
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.model.encoder import Encoder

Matrix = FloatMatrix | Int8Matrix
Held = tuple[Tensor, Sequence[Matrix]]  # a parameter and the matrices that hold its values now
Part = tuple[Tensor, "Tensor | None"]  # weight and bias of one matrix


def _can_pack(encoder: Encoder) -> bool:
    """Whether the weights are on a CPU, and this build of PyTorch has kernels for matrices of their type."""
    weight = encoder.word.weight
    if weight.device.type != "cpu" or not can_round():
        return False
    bfloat16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or bool(bfloat16)


def can_round() -> bool:
    """Whether this build of PyTorch has oneDNN, and with it the products of 8-bit matrices."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


@torch.no_grad()
def pack(encoder: Encoder, int8: bool = False) -> None:
    """Pack the blocks of ``encoder`` in place, for ``int8`` its vocabulary table too.

    Where this machine cannot, or it was done before, nothing happens.
    """
    if encoder.held or not _can_pack(encoder):
        return
    make: type[Matrix] = Int8Matrix if int8 else FloatMatrix
    for module in encoder.modules():
        if isinstance(module, Linear):
            new = _pack_linear(module, make)
        elif isinstance(module, FeedForward):
            new = _pack_feed_forward(module, make)
        elif isinstance(module, MoE):
            new = _pack_experts(module, make)
        elif module is encoder.word and int8:
            module.packed = Int8Table(module.weight)
            new = [(module.weight, ())]
        else:
            continue
        for parameter, _ in new:
            parameter.data = torch.full((1,), torch.nan, dtype=parameter.dtype).expand(parameter.shape)
        encoder.held += new


@torch.no_grad()
def unpack(encoder: Encoder) -> None:
    """Undo ``pack``.

    Raises:
        UserError: the matrices were rounded to int8.
    """
    for parameter, matrices in encoder.held:
        parameter.data = _value(parameter, matrices)
    encoder.held = []
    for module in encoder.modules():
        if isinstance(module, (Linear, FeedForward, MoE)):
            module.packed = None


@torch.no_grad()
def values(encoder: Encoder) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every tensor of ``encoder``, packed or not, one at a time."""
    packed = {id(parameter): matrices for parameter, matrices in encoder.held}
    for name, tensor in chain(encoder.named_parameters(), encoder.named_buffers()):
        matrices = packed.get(id(tensor))
        yield name, tensor.detach() if matrices is None else _value(tensor, matrices)


def _value(parameter: Tensor, matrices: Sequence[Matrix]) -> Tensor:
    parts = [matrix.packed.to_dense() for matrix in matrices if isinstance(matrix, FloatMatrix)]
    if not parts:
        raise UserError("this model was rounded to int8; load it with dtype='float32' to train or save it")
    return parts[0] if parameter.ndim == 2 else torch.stack(parts)


def _pack_linear(linear: Linear, make: type[Matrix]) -> list[Held]:
    linear.packed = _tiled(make, None, [(linear.weight, linear.bias), None, None])
    return [(linear.weight, linear.packed.matrices())]


def _pack_feed_forward(block: FeedForward, make: type[Matrix]) -> list[Held]:
    linears = (block.up, block.gate, block.down)
    parts = [(linear.weight, linear.bias) if linear is not None else None for linear in linears]
    block.packed = tiled = _tiled(make, block.activation_name, parts)
    weights = [linear.weight for linear in linears if linear is not None]
    return [(weight, [matrix]) for weight, matrix in zip(weights, tiled.matrices(), strict=True)]


def _pack_experts(moe: MoE, make: type[Matrix]) -> list[Held]:
    stacks = (
        (moe.up_EFD, moe.up_bias_EF),
        (moe.gate_EFD, moe.gate_bias_EF),
        (moe.down_EDF, moe.down_bias_ED),
    )

    def part(weight: Tensor | None, bias: Tensor | None, expert: int) -> Part | None:
        if weight is None:
            return None
        return weight[expert], bias[expert] if bias is not None else None

    moe.packed = [
        _tiled(make, moe.activation_name, [part(*stack, expert) for stack in stacks])
        for expert in range(len(moe.up_EFD))
    ]
    weights = [weight for weight, _ in stacks if weight is not None]
    return list(zip(weights, zip(*(tiled.matrices() for tiled in moe.packed), strict=True), strict=True))


def _tiled(make: type[Matrix], activation: Activation | None, parts: Sequence[Part | None]) -> Tiled:
    """``parts`` are up, gate and down; the activation goes into the gate, or without one into ``up``."""
    up, gate, down = parts
    assert up is not None
    return Tiled(
        make(*up, None if gate else activation),
        make(*gate, activation) if gate else None,
        make(*down, None) if down else None,
    )
