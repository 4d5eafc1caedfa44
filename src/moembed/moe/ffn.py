"""The dense feed-forward block and the activations experts share with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from moembed.config import Strict

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # exact, by erf
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class FeedForwardSpec(Strict):
    """A feed-forward block: ``width`` of its hidden states, activation, gate, biases.

    ``bias``: of the projections to the hidden states; ``out_bias`` of the one back.
    In a layer with experts every expert has this form, but for the biases, of which ``MoESpec.bias`` decides.
    """

    width: int = Field(ge=1)
    activation: Activation = "gelu"
    gated: bool = False
    bias: bool = True
    out_bias: bool = True


class FeedForward(nn.Module):
    """``down(act(up(x)))``, or gated ``down(act(gate(x)) * up(x))`` (Shazeer, arXiv 2002.05202)."""

    def __init__(self, width: int, spec: FeedForwardSpec) -> None:
        super().__init__()
        self.activation, self.activation_name = ACTIVATIONS[spec.activation], spec.activation
        self.up = nn.Linear(width, spec.width, bias=spec.bias)
        self.gate = nn.Linear(width, spec.width, bias=spec.bias) if spec.gated else None
        self.down = nn.Linear(spec.width, width, bias=spec.out_bias)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        up_TF = self.up(hidden_TD)
        if self.gate is None:
            return self.down(self.activation(up_TF))
        return self.down(self.activation(self.gate(hidden_TD)) * up_TF)
