"""The backend ``grouped_mm`` for GPUs, which sorts the pairs by expert as `moembed.moe.tiles` does.

It multiplies all experts at once and reads on the device where each begins: the host never asks how many
tokens an expert got, so a GPU never waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.moe.experts import Experts, add_up
from moembed.moe.router import Routing

multiply = getattr(F, "grouped_mm", None) or torch._grouped_mm  # it became public in PyTorch 2.10


@dataclass(frozen=True, slots=True)
class Sorted:
    """The pairs in the order of their experts."""

    order_P: Tensor  # which pair stands here
    token_P: Tensor
    chosen_PE: Tensor  # 1 at the pair's expert, else 0
    end_E: Tensor  # int32: where the pairs of each expert end

    @classmethod
    def of(cls, routing: Routing, dtype: torch.dtype) -> Sorted:
        order_P = routing.expert_P.argsort(stable=True)
        count_E = routing.count_E
        expert_E = torch.arange(len(count_E), device=order_P.device)
        chosen_PE = routing.expert_P[order_P, None] == expert_E
        end_E = count_E.cumsum(0, dtype=torch.int32)
        return cls(order_P, routing.token_P[order_P], chosen_PE.to(dtype), end_E)


def grouped_mm(experts: Experts, hidden_TD: Tensor, routing: Routing) -> Tensor:
    dtype = precision(hidden_TD)
    pairs = Sorted.of(routing, dtype)

    def linear(input_PI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None) -> Tensor:
        product_PO = multiply(input_PI, weight_EOI.to(dtype).transpose(1, 2), offs=pairs.end_E)
        # As a product, and not by indexing: the gradient of many equal indices is slow on a GPU.
        return product_PO if bias_EO is None else torch.addmm(product_PO, pairs.chosen_PE, bias_EO.to(dtype))

    hidden_PD = hidden_TD.to(dtype)[pairs.token_P]
    inner_PF = linear(hidden_PD, experts.up_EFD, experts.up_bias_EF)
    if experts.gate_EFD is None:
        inner_PF = experts.act(inner_PF)
    else:
        inner_PF = experts.act(linear(hidden_PD, experts.gate_EFD, experts.gate_bias_EF)) * inner_PF
    output_PD = linear(inner_PF, experts.down_EDF, experts.down_bias_ED)
    return add_up(output_PD, pairs.token_P, routing.weight_P[pairs.order_P], hidden_TD)


def precision(hidden_TD: Tensor) -> torch.dtype:
    """In which dtype a linear layer would multiply these states, autocast or not."""
    device = hidden_TD.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_TD.dtype


def unsupported_reason(experts: Experts, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why ``grouped_mm`` cannot run, or not without asking the GPU where the experts begin."""
    if device.type == "cuda":
        if dtype != torch.bfloat16:
            return "needs bfloat16 on a GPU"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "needs an Ampere GPU or a newer one"
    return misaligned(experts, dtype)


def misaligned(experts: Experts, dtype: torch.dtype) -> str | None:
    """Why the kernels of `multiply` cannot read the rows of these experts."""
    _, hidden, width = experts.shape
    if width * dtype.itemsize % 16 or hidden * dtype.itemsize % 16:
        return f"needs widths that are multiples of {16 // dtype.itemsize}, not {width} and {hidden}"
    return None
