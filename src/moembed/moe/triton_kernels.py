"""Triton kernels of the backend ``fused``: a linear layer of experts, and the weighted sum of what they gave.

One program computes a tile of ``ROWS`` pairs of one expert. It gathers their tokens while it multiplies, and
adds bias and activation to the accumulator, so nothing is written that only the next step would read.
Triton comes with PyTorch for CUDA; import this file only where it is there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 128


@triton.jit
def _activate(x, NAME: tl.constexpr):
    """The functions of `moembed.moe.ffn.ACTIVATIONS`."""
    if NAME == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":  # 0.5 * (1 + tanh(u)) is sigmoid(2u)
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif NAME == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif NAME == "silu":
        x = x * tl.sigmoid(x)
    return x


@triton.jit
def _linear_kernel(
    input, source, weight, bias, gate, gate_bias, output, kept, kept_gate,
    tile_expert, tile_first, tile_end, outputs, inputs,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    first, end = tl.load(tile_first + tl.program_id(1)), tl.load(tile_end + tl.program_id(1))
    if first >= end:
        return
    expert = tl.load(tile_expert + tl.program_id(1))
    row = first + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    real, shown = row < end, column < outputs
    token = row if source is None else tl.load(source + row, mask=real, other=0)
    matrix = expert * outputs * inputs + column[None, :] * inputs
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    gated = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, inputs, DEPTH):
        step = start + tl.arange(0, DEPTH)
        inside = step < inputs
        x = tl.load(
            input + token[:, None] * inputs + step[None, :], mask=real[:, None] & inside[None, :], other=0.0
        )
        place, mask = matrix + step[:, None], inside[:, None] & shown[None, :]
        total = tl.dot(x, tl.load(weight + place, mask=mask, other=0.0), total, input_precision=PRECISION)
        if gate is not None:
            gated = tl.dot(x, tl.load(gate + place, mask=mask, other=0.0), gated, input_precision=PRECISION)
    if bias is not None:
        total += tl.load(bias + expert * outputs + column, mask=shown, other=0.0)[None, :].to(tl.float32)
    if gate_bias is not None:
        gated += tl.load(gate_bias + expert * outputs + column, mask=shown, other=0.0)[None, :].to(tl.float32)
    place, mask = row[:, None] * outputs + column[None, :], real[:, None] & shown[None, :]
    if kept is not None:
        tl.store(kept + place, total.to(kept.dtype.element_ty), mask=mask)
    if kept_gate is not None:
        tl.store(kept_gate + place, gated.to(kept_gate.dtype.element_ty), mask=mask)
    total = _activate(total, ACTIVATION) if gate is None else _activate(gated, ACTIVATION) * total
    tl.store(output + place, total.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _combine_kernel(value, place, start, weight, output, width, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < width
    total = tl.zeros((COLUMNS,), tl.float32)
    for pair in range(tl.load(start + token), tl.load(start + token + 1)):
        row = value + tl.load(place + pair) * width
        part = tl.load(row + column, mask=inside, other=0.0).to(tl.float32)
        if weight is not None:
            part *= tl.load(weight + pair)
        total += part
    tl.store(output + token * width + column, total.to(output.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Expert, first pair and end of every tile. The host knows only a bound of their number: the last are
    empty."""

    expert_N: Tensor
    first_N: Tensor
    end_N: Tensor

    @classmethod
    def of(cls, end_E: Tensor, pairs: int) -> Tiles:
        end_E = end_E.long()
        start_E = torch.cat((end_E.new_zeros(1), end_E[:-1]))
        tiles_E = (end_E - start_E + ROWS - 1) // ROWS
        last_E = tiles_E.cumsum(0)
        tile_N = torch.arange(pairs // ROWS + len(end_E), device=end_E.device)
        expert_N = torch.searchsorted(last_E, tile_N, right=True).clamp_(max=len(end_E) - 1)
        first_N = start_E[expert_N] + (tile_N - (last_E - tiles_E)[expert_N]) * ROWS
        return cls(expert_N, first_N, end_E[expert_N])


@dataclass(frozen=True, slots=True)
class Matrices:
    """A linear layer of every expert, and the one that gates it."""

    weight_EFD: Tensor
    bias_EF: Tensor | None = None
    gate_EFD: Tensor | None = None
    gate_bias_EF: Tensor | None = None


def linear(
    input_ND: Tensor,
    tiles: Tiles,
    matrices: Matrices,
    token_P: Tensor | None = None,
    activation: str | None = None,
    keep: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``act(W_e x_p + b_e)``, or gated ``act(G_e x_p + g_e) * (W_e x_p + b_e)``, for all pairs by expert.

    Args:
        token_P: which row of ``input_ND`` pair p reads; default: row p.
        keep: return beside the ``(P, F)`` output what stood before the activation, of weight and of gate.
    """
    pairs = len(input_ND if token_P is None else token_P)
    weight_EFD, gate_EFD = matrices.weight_EFD, matrices.gate_EFD
    _, outputs, inputs = weight_EFD.shape
    output_PF = input_ND.new_empty(pairs, outputs)
    kept_PF = torch.empty_like(output_PF) if keep else None
    kept_gate_PF = torch.empty_like(output_PF) if keep and gate_EFD is not None else None
    columns = 128 if gate_EFD is None else 64  # two accumulators have to fit into the registers of one
    grid = (triton.cdiv(outputs, columns), len(tiles.expert_N))
    with torch.cuda.device_of(input_ND):
        _linear_kernel[grid](
            input_ND, token_P, weight_EFD, matrices.bias_EF, gate_EFD, matrices.gate_bias_EF,
            output_PF, kept_PF, kept_gate_PF,
            tiles.expert_N, tiles.first_N, tiles.end_N, outputs, inputs,
            ACTIVATION=activation or "none",
            PRECISION="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
            ROWS=ROWS, COLUMNS=columns, DEPTH=32 if input_ND.dtype == torch.float32 else 64,
            num_warps=8, num_stages=3,
        )  # fmt: skip
    return output_PF, kept_PF, kept_gate_PF


def combine(value_PD: Tensor, place_P: Tensor, start_T: Tensor, weight_P: Tensor | None = None) -> Tensor:
    """``y_t = sum of weight_p * value[place_p]`` over the pairs p of token t, added up in fp32, in order.

    ``start_T`` says where the pairs of each token start, and with one more entry where the last ones end.
    """
    tokens, width = len(start_T) - 1, value_PD.shape[1]
    output_TD = value_PD.new_empty(tokens, width)
    with torch.cuda.device_of(value_PD):
        _combine_kernel[(tokens,)](
            value_PD, place_P, start_T, weight_P, output_TD, width, COLUMNS=triton.next_power_of_2(width)
        )
    return output_TD
