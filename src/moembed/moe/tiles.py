"""The backend ``grouped``: one sort by expert, then products on tiles of few sizes, forward and backward.

oneDNN builds a kernel for every number of rows that it has not met, and an expert gets another number in
every chunk of every step. So each expert's rows are cut into tiles of the sizes ``SIZES``; of the last one at
most 31 rows are padding, of weight 0. What lies between the two products of a tile stays in the caches. The
gradient of a weight matrix is one product over all rows of the expert, whose number is rounded up to one of
four per octave, with rows of zeros.

Between forward and backward lie the states before the activation, ``(R, F)``, and the outputs, ``(R, D)``, in
the precision of the products; sums over the experts of a token are in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moembed.machine import has_amx
from moembed.moe.experts import Experts
from moembed.moe.ffn import ACTIVATIONS, Activation
from moembed.moe.grouped import precision
from moembed.moe.router import Routing

# Rows of a tile. With AMX products are so fast that calls cost more than what no longer fits the caches.
SIZES = (2048, 1024) * has_amx() + (512, 256, 128, 64, 32)


@dataclass(frozen=True, slots=True)
class Rows:
    """The pairs by expert, each expert's rows padded to whole tiles.

    ``token_R`` is the token of every row (0 where it is padding), ``row_P`` the row of every pair, ``slices``
    the rows of each expert that has some.
    """

    token_R: Tensor
    row_P: Tensor
    slices: list[tuple[int, slice]]

    @classmethod
    def of(cls, routing: Routing) -> Rows:
        order_P = routing.expert_P.argsort(stable=True)
        counts = routing.count_E.tolist()
        padded = [-(-count // SIZES[-1]) * SIZES[-1] for count in counts]
        starts = [0, *accumulate(padded)]
        # by how much padding moves the pairs of each expert
        moved_E = torch.tensor(
            [start - pair for start, pair in zip(starts, accumulate([0, *counts]), strict=True)]
        )
        device = order_P.device
        moved_P = moved_E[:-1].to(device)[routing.expert_P[order_P]]
        row_P = torch.empty_like(order_P)
        row_P[order_P] = torch.arange(len(order_P), device=device) + moved_P
        token_R = torch.zeros(starts[-1], dtype=torch.long, device=device)
        token_R[row_P] = routing.token_P
        slices = [
            (expert, slice(start, start + rows))
            for expert, (start, rows) in enumerate(zip(starts, padded, strict=False))
            if rows
        ]
        return cls(token_R, row_P, slices)


def tiles(rows: slice) -> Iterator[slice]:
    """Cut rows, a multiple of the smallest size, into tiles, the largest first."""
    start = rows.start
    for size in SIZES:
        while start + size <= rows.stop:
            yield slice(start, start + size)
            start += size


def rounded_up(rows: int) -> int:
    """The next of four numbers per octave: 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, ..."""
    step = max(SIZES[-1], 1 << max(rows - 1, 1).bit_length() >> 3)
    return -(-rows // step) * step


def grouped(experts: Experts, hidden_TD: Tensor, routing: Routing) -> Tensor:
    output_TD = _Grouped.apply(  # type: ignore[no-untyped-call]
        Rows.of(routing),
        (experts.activation, precision(hidden_TD), torch.is_grad_enabled()),
        routing.weight_P,
        hidden_TD,
        experts.up_EFD,
        experts.up_bias_EF,
        experts.gate_EFD,
        experts.gate_bias_EF,
        experts.down_EDF,
        experts.down_bias_ED,
    )
    return output_TD.to(hidden_TD.dtype)


class _Expert(NamedTuple):
    """The weights of one expert in the precision of the products."""

    up: Tensor
    up_bias: Tensor | None
    gate: Tensor | None
    gate_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None

    @classmethod
    def of(cls, parameters: Sequence[Tensor | None], number: int, dtype: torch.dtype) -> _Expert:
        return cls(*(None if some is None else some[number].to(dtype) for some in parameters))  # type: ignore[arg-type]


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Rows, how: tuple[Activation, torch.dtype, bool], weight_P: Tensor, hidden_TD: Tensor,
        *parameters: Tensor | None,
    ) -> Tensor:  # fmt: skip
        (activation, dtype, keep), act = how, ACTIVATIONS[how[0]]
        up_EFD, gate_EFD, down_EDF = parameters[0], parameters[2], parameters[4]
        assert up_EFD is not None
        assert down_EDF is not None
        states_TD = hidden_TD.to(dtype)
        weight_R1 = weight_P.new_zeros(len(rows.token_R), 1)
        weight_R1[rows.row_P, 0] = weight_P
        output_TD = torch.zeros(hidden_TD.shape, dtype=torch.float32, device=hidden_TD.device)
        # what backward reads
        width, count = up_EFD.shape[1], len(rows.token_R) if keep else 0
        up_RF = states_TD.new_empty(count, width)
        gate_RF = states_TD.new_empty(count if gate_EFD is not None else 0, width)
        output_RD = states_TD.new_empty(count, hidden_TD.shape[1])

        for expert, own in rows.slices:
            up, up_bias, gate, gate_bias, down, down_bias = _Expert.of(parameters, expert, dtype)
            for tile in tiles(own):
                token_N = rows.token_R[tile]
                input_ND = states_TD[token_N]
                before_NF = up_NF = F.linear(input_ND, up, up_bias)
                if gate is not None:
                    before_NF = F.linear(input_ND, gate, gate_bias)
                inner_NF = act(before_NF) if gate is None else act(before_NF).mul_(up_NF)
                part_ND = F.linear(inner_NF, down, down_bias)
                output_TD.index_add_(0, token_N, part_ND.float() * weight_R1[tile])
                if keep:
                    up_RF[tile], output_RD[tile] = up_NF, part_ND
                    if gate is not None:
                        gate_RF[tile] = before_NF
        if keep:
            ctx.rows, ctx.activation = rows, activation
            ctx.save_for_backward(weight_R1, states_TD, up_RF, gate_RF, output_RD, *parameters)
            ctx.dtypes = hidden_TD.dtype, weight_P.dtype
        return output_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Any, ...]:
        weight_R1, states_TD, up_RF, gate_RF, output_RD, *parameters = ctx.saved_tensors
        rows, dtype = ctx.rows, states_TD.dtype
        grad_R1 = torch.zeros_like(weight_R1)
        back_TD = torch.zeros_like(grad_TD, dtype=torch.float32)
        # an expert without tokens has a gradient of zeros
        grads = [None if some is None else torch.zeros_like(some) for some in parameters]

        for expert, own in rows.slices:
            mine = _Expert.of(parameters, expert, dtype)
            part = _Slice.of(mine, states_TD, rounded_up(own.stop - own.start), rows.token_R[own])
            for tile in tiles(own):
                token_N = rows.token_R[tile]
                grad_ND = grad_TD[token_N].float()
                grad_R1[tile] = (grad_ND * output_RD[tile]).sum(1, keepdim=True)
                before = [up_RF[tile], *([gate_RF[tile]] if len(gate_RF) else [])]
                place = slice(tile.start - own.start, tile.stop - own.start)
                back_ND = part.tile(place, grad_ND.mul_(weight_R1[tile]).to(dtype), before, ctx.activation)
                back_TD.index_add_(0, token_N, back_ND.float())
            for grad, found in zip(grads, part.gradients(), strict=True):
                if grad is not None and found is not None:
                    grad[expert].copy_(found)
        hidden_dtype, weight_dtype = ctx.dtypes
        grad_P = grad_R1[rows.row_P, 0].to(weight_dtype)
        return None, None, grad_P, back_TD.to(hidden_dtype), *grads


@dataclass(slots=True)
class _Slice:
    """The backward pass of one expert: for its weights all its rows are kept, then rows of zeros."""

    weights: _Expert
    input_ND: Tensor
    grad_ND: Tensor  # of the output, weighted
    inner_NF: Tensor
    before_NF: list[Tensor]  # the gradients before the activation: of up, of gate

    @classmethod
    def of(cls, weights: _Expert, states_TD: Tensor, count: int, token_N: Tensor) -> _Slice:
        gated = weights.gate is not None
        width, hidden, real = *weights.down.shape, len(token_N)
        buffers = [states_TD.new_empty(count, size) for size in (width, *[hidden] * (3 if gated else 2))]
        for buffer in buffers:
            buffer[real:] = 0
        input_ND = states_TD[F.pad(token_N, (0, count - real))]
        return cls(weights, input_ND, buffers[0], buffers[1], buffers[2:])

    def tile(self, place: slice, grad_ND: Tensor, before: list[Tensor], activation: Activation) -> Tensor:
        """The gradient of a tile's input; what the gradients of the weights need is kept."""
        up, gate, down = self.weights.up, self.weights.gate, self.weights.down
        leaves = [states_NF.detach().requires_grad_() for states_NF in before]
        with torch.enable_grad():
            inner_NF = ACTIVATIONS[activation](leaves[-1])
            if gate is not None:
                inner_NF = inner_NF * leaves[0]
        found = torch.autograd.grad(inner_NF, leaves, grad_ND @ down)
        self.grad_ND[place], self.inner_NF[place] = grad_ND, inner_NF.detach()
        for buffer_NF, grad_NF in zip(self.before_NF, found, strict=True):
            buffer_NF[place] = grad_NF
        back_ND = found[0] @ up
        return back_ND if gate is None else back_ND + found[1] @ gate

    def gradients(self) -> list[Tensor | None]:
        """Of the weights, in their order."""
        found: list[Tensor | None] = []
        products = [(grad_NF, self.input_ND) for grad_NF in self.before_NF]
        if len(products) == 1:
            products.append((self.grad_ND[:0], self.input_ND[:0]))  # no gate
        products.append((self.grad_ND, self.inner_NF))
        for number, (grad, states) in enumerate(products):
            weight, bias = self.weights[2 * number], self.weights[2 * number + 1]
            found.append(None if weight is None else grad.T @ states)
            found.append(None if bias is None else grad.sum(0))
        return found
