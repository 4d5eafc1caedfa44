"""The backend ``fused``: gather, product, bias and activation in one Triton kernel, and no sum by atomics.

Forward: one kernel per linear layer and one for the weighted sum; between them lie ``(P, F)`` and ``(P, D)``.
Backward: the products of `moembed.moe.grouped`, from what stood before the activation. Both give the same
bits at every run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moembed.moe.experts import Experts
from moembed.moe.ffn import ACTIVATIONS, Activation
from moembed.moe.grouped import Sorted, misaligned, multiply, precision
from moembed.moe.router import Routing

if TYPE_CHECKING:
    from moembed.moe.triton_kernels import Tiles  # needs triton, which may not be there


@dataclass(frozen=True, slots=True)
class Plan:
    """Who computes what: the pairs by expert, cut into tiles, and where those of a token are found again."""

    pairs: Sorted
    tiles: Tiles
    place_P: Tensor  # where pair p, by token, stands among the pairs by expert
    start_T: Tensor  # the first pair of each token, and the end of the last one's

    @classmethod
    def of(cls, routing: Routing, dtype: torch.dtype) -> Plan:
        from moembed.moe.triton_kernels import Tiles

        pairs = Sorted.of(routing, dtype)
        device, count = pairs.order_P.device, len(pairs.order_P)
        place_P = torch.empty_like(pairs.order_P)
        place_P.scatter_(0, pairs.order_P, torch.arange(count, device=device))
        start_T = torch.searchsorted(routing.token_P, torch.arange(routing.stats.tokens + 1, device=device))
        return cls(pairs, Tiles.of(pairs.end_E, count), place_P, start_T)


def fused(experts: Experts, hidden_TD: Tensor, routing: Routing) -> Tensor:
    dtype = precision(hidden_TD)
    ups = (experts.up_EFD, experts.up_bias_EF, experts.gate_EFD, experts.gate_bias_EF)
    weights = (*ups, experts.down_EDF, experts.down_bias_ED)
    output_TD = _Experts.apply(  # type: ignore[no-untyped-call]
        Plan.of(routing, dtype),
        experts.activation,
        torch.is_grad_enabled(),
        routing.weight_P.contiguous(),
        hidden_TD.to(dtype).contiguous(),
        *(None if weight is None else weight.to(dtype) for weight in weights),
    )
    return output_TD.to(hidden_TD.dtype)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: Plan, activation: Activation, keep: bool, weight_P: Tensor, hidden_TD: Tensor,
        up: Tensor, up_bias: Tensor | None, gate: Tensor | None, gate_bias: Tensor | None,
        down: Tensor, down_bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        from moembed.moe.triton_kernels import Matrices, combine, linear

        into, out_of = Matrices(up, up_bias, gate, gate_bias), Matrices(down, down_bias)
        token_P = plan.pairs.token_P
        inner_PF, up_PF, gate_PF = linear(hidden_TD, plan.tiles, into, token_P, activation, keep)
        output_PD, *_ = linear(inner_PF, plan.tiles, out_of)
        if keep:
            ctx.plan, ctx.activation = plan, ACTIVATIONS[activation]
            ctx.save_for_backward(
                weight_P, hidden_TD, up_PF, gate_PF, up, up_bias, gate, gate_bias, down, down_bias
            )
        return combine(output_PD, plan.place_P, plan.start_T, weight_P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Any, ...]:
        from moembed.moe.triton_kernels import combine

        weight_P, hidden_TD, up_PF, gate_PF, up, up_bias, gate, gate_bias, down, down_bias = ctx.saved_tensors
        pairs: Sorted = ctx.plan.pairs
        weight_P1 = weight_P[pairs.order_P, None]
        grad_PD, hidden_PD = grad_TD[pairs.token_P], hidden_TD[pairs.token_P]

        def through(
            grad_PO: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, input_PI: Tensor, chosen_PE: Tensor
        ) -> tuple[Tensor, Tensor, Tensor | None]:
            """The gradients of the input, the weight and the bias of a linear layer of experts."""
            back_PI = multiply(grad_PO, weight_EOI, offs=pairs.end_E)
            grad_EOI = multiply(grad_PO.T, input_PI, offs=pairs.end_E)
            return back_PI, grad_EOI, None if bias_EO is None else chosen_PE.T @ grad_PO

        before = [
            states_PF.detach().requires_grad_() for states_PF in (up_PF, gate_PF) if states_PF is not None
        ]
        with torch.enable_grad():
            inner_PF = ctx.activation(before[-1]) if gate is None else ctx.activation(before[1]) * before[0]
        weighted_PF = (inner_PF.detach() * weight_P1).to(inner_PF.dtype)
        weighted_PE = (pairs.chosen_PE * weight_P1).to(inner_PF.dtype)
        back_PF, grad_down, grad_down_bias = through(grad_PD, down, down_bias, weighted_PF, weighted_PE)
        # <g, W h + b> = <W' g, h> + <g, b>: no output of an expert is needed for the gradient of its weight
        grad_P = (back_PF.float() * inner_PF.detach().float()).sum(1)
        if down_bias is not None:
            grad_P += (grad_PD @ down_bias.T * pairs.chosen_PE).sum(1)
        grads_PF = torch.autograd.grad(inner_PF, before, (back_PF * weight_P1).to(back_PF.dtype))
        back_PD, grad_up, grad_up_bias = through(grads_PF[0], up, up_bias, hidden_PD, pairs.chosen_PE)
        grad_gate, grad_gate_bias = None, None
        if gate is not None:
            part_PD, grad_gate, grad_gate_bias = through(
                grads_PF[1], gate, gate_bias, hidden_PD, pairs.chosen_PE
            )
            back_PD = back_PD + part_PD
        return (
            None, None, None, grad_P[ctx.plan.place_P], combine(back_PD, ctx.plan.place_P, ctx.plan.start_T),
            grad_up, grad_up_bias, grad_gate, grad_gate_bias, grad_down, grad_down_bias,
        )  # fmt: skip


def unsupported_reason(experts: Experts, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why ``fused`` cannot run."""
    if not _has_triton():
        return "needs the package triton"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "needs a CUDA device"
    return misaligned(experts, dtype)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
