"""The form in which an encoder serves: a frozen twin of it that owns its packed matrices.

``freeze`` copies the tree of modules, not the weights. On a CPU every matrix of the twin is packed into the
layout that its dot products read; what is small (norms, biases, position tables) is shared with the encoder,
and so are experts that are averaged for every text.
The encoder itself is never touched: it can be trained, saved, copied and iterated over as if it had never
served. ``int8`` rounds: weights and the vocabulary table once, activations at every product; routers, norms,
biases and attention stay as they are.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moembed.inference.fingerprint import Fingerprint
from moembed.inference.layers import Packed, PackedMoE, PackedRouter
from moembed.inference.packed import FloatMatrix, Int8Matrix, Int8Table, Tiled, TiledExperts
from moembed.model.adapters import plain
from moembed.model.encoder import Encoder
from moembed.moe.experts import Experts
from moembed.moe.ffn import Activation, FeedForward
from moembed.moe.layer import MoE
from moembed.moe.router import Router

Matrix = FloatMatrix | Int8Matrix
Part = tuple[Tensor, "Tensor | None"]  # weight and bias of one matrix

_building = threading.Lock()


def _renew_lock() -> None:
    """In a forked child: the thread that held the lock may not be there any more."""
    global _building
    _building = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


class Engine:
    """The frozen twins of one encoder: made when first asked for, and again when the encoder has changed.

    Any number of threads may ask. A copy, or a pickle, is an engine that has made nothing yet.
    """

    def __init__(self, int8: bool = False) -> None:
        self.int8 = int8
        self._made: tuple[Fingerprint, Encoder] | None = None

    def __reduce__(self) -> tuple[type[Engine], tuple[bool]]:
        return Engine, (self.int8,)

    def encoder(self, module: Encoder) -> Encoder:
        """What computes the values of ``module`` in inference: packed, unless ``module`` is in training."""
        if module.training:
            return freeze(module, pack=False)
        if (made := self._current()) is None:
            with _building:
                if (made := self._current()) is None:
                    fingerprint = Fingerprint(module)
                    made = freeze(module, self.rounds(module))
                    self._made = (fingerprint, made)
        return made

    def rounds(self, module: Encoder) -> bool:
        """Whether ``module`` serves with 8-bit matrices: not in training, in float32 on a CPU alone."""
        return self.int8 and not module.training and _can_round(module)

    def drop(self) -> None:
        """Give the memory of the packed matrices back."""
        self._made = None

    def _current(self) -> Encoder | None:
        made = self._made
        return made[1] if made is not None and made[0].holds() else None


def can_round() -> bool:
    """Whether this build of PyTorch has oneDNN, and with it the products of 8-bit matrices."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


@torch.no_grad()
def freeze(encoder: Encoder, int8: bool = False, pack: bool = True) -> Encoder:
    """A twin of ``encoder`` in inference mode; its tree of modules is its own, its unpacked tensors are not.

    Where this machine cannot pack (a GPU, a precision without kernels), or ``pack`` is false, the twin shares
    all of its tensors.
    """
    make: type[Matrix] | None = None
    encoder = plain(encoder)  # adapters are merged
    if pack and _can_pack(encoder):
        make = Int8Matrix if int8 else FloatMatrix
    twin = _twin(encoder, make)
    assert isinstance(twin, Encoder)
    if make is Int8Matrix and isinstance(encoder.word, nn.Embedding):  # a compressed table serves as it is
        twin._modules["word"] = Packed(Int8Table(encoder.word.weight))
    return twin


def _can_pack(encoder: Encoder) -> bool:
    """Whether the weights are on a CPU, and this build of PyTorch has kernels for matrices of their type."""
    if encoder.device.type != "cpu" or not can_round():
        return False
    bfloat16 = encoder.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return encoder.dtype == torch.float32 or bool(bfloat16)


def _can_round(encoder: Encoder) -> bool:
    return _can_pack(encoder) and encoder.dtype == torch.float32


def _twin(module: nn.Module, make: type[Matrix] | None) -> nn.Module:
    if make is not None and isinstance(module, nn.Linear):
        return Packed(_tiled(make, None, [(module.weight, module.bias), None, None]))
    if make is not None and isinstance(module, FeedForward):
        linears = (module.up, module.gate, module.down)
        parts = [(linear.weight, linear.bias) if linear is not None else None for linear in linears]
        return Packed(_tiled(make, module.activation_name, parts))
    twin = copy.copy(module)
    for name in ("_parameters", "_buffers"):
        twin.__dict__[name] = dict(module.__dict__[name])
    children = module._modules.items()
    twin.__dict__["_modules"] = {name: child and _twin(child, make) for name, child in children}
    twin.__dict__["training"] = False
    if make is not None and isinstance(twin, MoE) and not twin.router.config.merges:
        twin.__class__ = PackedMoE
        twin.__dict__["packed"] = _experts(twin.experts, make)
    elif make is not None and isinstance(twin, Router) and twin.weight_ED is not None:
        twin.__class__ = PackedRouter
        twin.__dict__["matrix"] = Tiled(FloatMatrix(twin.rows_ED(), None, None), None, None)
    return twin


def _experts(experts: Experts, make: type[Matrix]) -> TiledExperts:
    stacks = (
        (experts.up_EFD, experts.up_bias_EF),
        (experts.gate_EFD, experts.gate_bias_EF),
        (experts.down_EDF, experts.down_bias_ED),
    )

    def part(weight: Tensor | None, bias: Tensor | None, expert: int) -> Part | None:
        if weight is None:
            return None
        return weight[expert], bias[expert] if bias is not None else None

    return TiledExperts(
        [
            _tiled(make, experts.activation, [part(*stack, expert) for stack in stacks])
            for expert in range(len(experts.up_EFD))
        ]
    )


def _tiled(make: type[Matrix], activation: Activation | None, parts: Sequence[Part | None]) -> Tiled:
    """``parts`` are up, gate and down; the activation goes into the gate, or without one into ``up``."""
    up, gate, down = parts
    assert up is not None
    return Tiled(
        make(*up, None if gate else activation),
        make(*gate, activation) if gate else None,
        make(*down, None) if down else None,
    )
