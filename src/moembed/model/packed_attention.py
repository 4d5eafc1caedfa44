"""Attention of a packed batch on a CPU, computed in float32 whatever the precision of its states.

PyTorch's fused CPU kernel is slower in bf16 than in fp32: without AMX in both directions, with AMX backward,
by 4 to 15 times for texts of up to 128 tokens. So each run of equally long texts is made float32 just before
the kernel, where it is still in the caches, and what stays for backward is kept as it came.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Runs = list[tuple[slice, tuple[int, int]]]  # rows of each run, and how many texts of how many tokens it has

_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def in_float(query_THC: Tensor, key_THC: Tensor, value_THC: Tensor, length_B: Sequence[int]) -> Tensor:
    """softmax(QK'/sqrt(C))V within each text, in the precision it came in.

    Rows behind the last text are padding, and stay zero.
    """
    runs: Runs = []
    start = 0
    for length, group in groupby(length_B):
        count = len(list(group))
        runs.append((slice(start, start + count * length), (count, length)))
        start += count * length
    if not torch.is_grad_enabled():
        return _attend(runs, query_THC, key_THC, value_THC)[0]
    mixed_THC: Tensor = _InFloat.apply(runs, query_THC, key_THC, value_THC)  # type: ignore[no-untyped-call]
    return mixed_THC


def _attend(runs: Runs, *states: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The mixed values, and of each run the log of the sum of exponents that backward needs."""
    mixed_THC = states[0].new_empty(states[0].shape)
    sums = []
    with torch.autocast("cpu", enabled=False):
        for rows, shape in runs:
            mixed_BHSC, sum_BHS = _kernel(*(_texts(states_THC[rows], shape) for states_THC in states))
            mixed_THC[rows].view(*shape, *mixed_THC.shape[1:]).copy_(mixed_BHSC.transpose(1, 2))
            sums.append(sum_BHS)
    mixed_THC[runs[-1][0].stop if runs else 0 :] = 0
    return mixed_THC, sums


def _texts(states_NHC: Tensor, shape: tuple[int, int]) -> Tensor:
    """The rows of a run as the kernel takes them, ``(B, H, S, C)`` float32."""
    return states_NHC.view(*shape, *states_NHC.shape[1:]).float().transpose(1, 2)


class _InFloat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, runs: Runs, *states: Tensor) -> Tensor:
        mixed_THC, sums = _attend(runs, *states)
        ctx.runs = runs
        ctx.save_for_backward(*states, mixed_THC, *sums)
        return mixed_THC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THC: Tensor) -> tuple[Any, ...]:
        query_THC, key_THC, value_THC, mixed_THC, *sums = ctx.saved_tensors
        # side by side, as the projection made the states
        heads = query_THC.shape[1]
        back_THC = query_THC.new_empty(len(query_THC), 3 * heads, query_THC.shape[2])
        for (rows, shape), sum_BHS in zip(ctx.runs, sums, strict=True):
            states = (query_THC, key_THC, value_THC, mixed_THC)
            query, key, value, mixed = (_texts(states_THC[rows], shape) for states_THC in states)
            grad = _texts(grad_THC[rows], shape)
            found = _backward(grad, query, key, value, mixed, sum_BHS, 0.0, False)
            run_BSHC = back_THC[rows].view(*shape, *back_THC.shape[1:])
            for part_BSHC, found_BHSC in zip(run_BSHC.split(heads, dim=2), found, strict=True):
                part_BSHC.copy_(found_BHSC.transpose(1, 2))
        back_THC[ctx.runs[-1][0].stop if ctx.runs else 0 :] = 0
        return None, *back_THC.split(heads, dim=1)
