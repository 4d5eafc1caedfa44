"""The dense feed-forward block and the activations experts share with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # exact, by erf
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class FeedForward(nn.Module):
    """``down(act(up(x)))``, or gated ``down(act(gate(x)) * up(x))`` (Shazeer, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, activation: Activation, gated: bool, bias: bool) -> None:
        super().__init__()
        self.activation, self.activation_name = ACTIVATIONS[activation], activation
        self.up = nn.Linear(width, hidden, bias=bias)
        self.gate = nn.Linear(width, hidden, bias=bias) if gated else None
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        up_TF = self.up(hidden_TD)
        if self.gate is None:
            return self.down(self.activation(up_TF))
        return self.down(self.activation(self.gate(hidden_TD)) * up_TF)
