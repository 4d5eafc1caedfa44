"""The weights of routed experts, and the sum of what the experts of a token gave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.moe.ffn import ACTIVATIONS, Activation


@dataclass(frozen=True, slots=True)
class Experts:
    """E feed-forward blocks; each slice is laid out as ``nn.Linear`` (out, in)."""

    activation: Activation
    up_EFD: Tensor
    down_EDF: Tensor
    gate_EFD: Tensor | None = None
    up_bias_EF: Tensor | None = None
    gate_bias_EF: Tensor | None = None
    down_bias_ED: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of experts, their hidden width, the width of a state."""
        experts, hidden, width = self.up_EFD.shape
        return experts, hidden, width

    def act(self, states: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](states)

    def tensors(self) -> list[Tensor]:
        weights = (self.up_EFD, self.gate_EFD, self.down_EDF)
        biases = (self.up_bias_EF, self.gate_bias_EF, self.down_bias_ED)
        return [tensor for tensor in (*weights, *biases) if tensor is not None]

    def distance(self) -> float:
        """How far the experts are from one another: 0 for copies, about 1.4 for unrelated ones.

        ``sqrt(mean over pairs of |w_i - w_j|^2 / mean of |w_i|^2)`` over all values w_i of an expert; of one
        expert it is 0.
        """
        count = len(self.up_EFD)
        if count == 1:
            return 0.0
        square = apart = 0.0
        for tensor in self.tensors():
            value_EN = tensor.detach().float().flatten(1)
            square += float(value_EN.square().sum(dtype=torch.float64)) / count
            apart += float((value_EN - value_EN.mean(0)).square().sum(dtype=torch.float64))
        # the mean over pairs of |w_i - w_j|^2 is 2 / (E - 1) times the sum of |w_i - mean w|^2
        return (2 * apart / (count - 1) / max(square, 1e-30)) ** 0.5

    def functions(self) -> list[Callable[[Tensor], Tensor]]:
        """One function per expert. ``unbind`` slices all of them in one node, so backward stacks their
        gradients once instead of adding E mostly-zero tensors."""
        count = len(self.up_EFD)
        up_FD, down_DF = self.up_EFD.unbind(), self.down_EDF.unbind()
        gate_FD, up_bias_F, gate_bias_F, down_bias_D = (
            parameter.unbind() if parameter is not None else (None,) * count
            for parameter in (self.gate_EFD, self.up_bias_EF, self.gate_bias_EF, self.down_bias_ED)
        )

        def expert(number: int) -> Callable[[Tensor], Tensor]:
            def compute(hidden_ND: Tensor) -> Tensor:
                inner_NF = F.linear(hidden_ND, up_FD[number], up_bias_F[number])
                if (gate := gate_FD[number]) is None:
                    inner_NF = self.act(inner_NF)
                else:
                    inner_NF = self.act(F.linear(hidden_ND, gate, gate_bias_F[number])) * inner_NF
                return F.linear(inner_NF, down_DF[number], down_bias_D[number])

            return compute

        return [expert(number) for number in range(count)]


def add_up(output_PD: Tensor, token_P: Tensor, weight_P: Tensor, hidden_TD: Tensor) -> Tensor:
    """``y_t = sum of weight_p * output_p`` over the pairs p of token t, in fp32; shaped as ``hidden_TD``."""
    weighted_PD = output_PD.float() * weight_P[:, None]
    output_TD = torch.zeros_like(hidden_TD, dtype=torch.float32).index_add(0, token_P, weighted_PD)
    return output_TD.to(hidden_TD.dtype)
