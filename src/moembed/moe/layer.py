"""The Mixture-of-Experts feed-forward block, on roads that give the same values.

``y_t = sum over the pairs (t, e) of weight * expert_e(x_t)  [+ shared bias]  [+ shared experts(x_t)]``

- ``loop``: for every expert, pick its tokens, compute, add. Slow and obvious; the reference.
- ``grouped``: one sort of the pairs by expert, one gather, one matrix product per expert on a contiguous
  slice, one weighted scatter back. Trains.
- ``grouped_mm``: the same with one product for all experts, see `moembed.moe.grouped`. For GPUs.
- ``fused``: gather, products, activation and sum in Triton kernels, see `moembed.moe.fused`. For GPUs.

`moembed.moe.backends` takes one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from moembed.config import Strict
from moembed.moe.backends import AUTO, Road, moe_road
from moembed.moe.ffn import ACTIVATIONS, Activation, FeedForward
from moembed.moe.fused import fused
from moembed.moe.grouped import add_up, grouped_mm
from moembed.moe.router import Router, RouterConfig, Routing
from moembed.types import RouterStats


class MoEConfig(Strict):
    """Which layers hold experts and what an expert is.

    ``bias``: ``each`` expert keeps the two biases of the dense block it came from; ``shared`` is one output
    bias per layer, added once (the published Nomic Embed v2); ``none`` has none.

    ``num_shared_experts`` always see every token; together they are one block of that many times the hidden
    width. ``shared_weight`` says how their output meets that of the k routed ones: their ``sum``, or as in
    MegaBlocks the ``mean`` of k routed parts and one shared, ``(k * routed + shared) / (k + 1)``.
    """

    layers: tuple[int, ...]
    num_experts: int = Field(default=8, ge=1)
    num_shared_experts: int = Field(default=0, ge=0)
    shared_weight: Literal["sum", "mean"] = "sum"
    bias: Literal["each", "shared", "none"] = "each"
    router: RouterConfig = RouterConfig()

    @model_validator(mode="after")
    def _chosen_experts_exist(self) -> MoEConfig:
        if self.router.top_k > self.num_experts:
            raise ValueError(f"top_k {self.router.top_k} is more than num_experts {self.num_experts}")
        return self


class MoE(nn.Module):
    """Experts as 3-D parameters, one slice each; every slice is laid out as ``nn.Linear`` (out, in)."""

    def __init__(
        self, width: int, hidden: int, activation: Activation, gated: bool, config: MoEConfig, layer: int
    ) -> None:
        super().__init__()
        self.activation, self.activation_name = ACTIVATIONS[activation], activation
        experts, each = config.num_experts, config.bias == "each"
        self.router = Router(width, experts, config.router, layer)
        self.up_EFD = nn.Parameter(torch.empty(experts, hidden, width))
        self.gate_EFD = nn.Parameter(torch.empty(experts, hidden, width)) if gated else None
        self.down_EDF = nn.Parameter(torch.empty(experts, width, hidden))
        self.up_bias_EF = nn.Parameter(torch.empty(experts, hidden)) if each else None
        self.gate_bias_EF = nn.Parameter(torch.empty(experts, hidden)) if each and gated else None
        self.down_bias_ED = nn.Parameter(torch.empty(experts, width)) if each else None
        self.bias_D = nn.Parameter(torch.empty(width)) if config.bias == "shared" else None
        self.shared, self.shared_weight = None, config.shared_weight
        if config.num_shared_experts:
            wide = hidden * config.num_shared_experts
            self.shared = FeedForward(width, wide, activation, gated, bias=config.bias != "none")

    def forward(
        self, hidden_TD: Tensor, length_B: Sequence[int], road: str = AUTO
    ) -> tuple[Tensor, RouterStats]:
        routing = self.router(hidden_TD, length_B)
        output_TD = self.routed(hidden_TD, routing, road)
        if self.bias_D is not None:
            output_TD = output_TD + self.bias_D
        if self.shared is not None:
            shared_TD = self.shared(hidden_TD)
            if self.shared_weight == "mean":
                top_k = self.router.config.top_k
                output_TD = (top_k * output_TD + shared_TD) / (top_k + 1)
            else:
                output_TD = output_TD + shared_TD
        return output_TD, routing.stats

    def routed(self, hidden_TD: Tensor, routing: Routing, road: str) -> Tensor:
        """The weighted sum of the outputs of every token's experts."""
        return ROADS[moe_road(self, hidden_TD, road, ROADS)](self, hidden_TD, routing)

    def routed_parameters(self) -> int:
        """Parameters of all routed experts; the router, the shared bias and shared experts are none."""
        weights = (self.up_EFD, self.gate_EFD, self.down_EDF)
        biases = (self.up_bias_EF, self.gate_bias_EF, self.down_bias_ED)
        return sum(parameter.numel() for parameter in (*weights, *biases) if parameter is not None)

    def idle_parameters(self) -> int:
        """Parameters of the routed experts that one token does not visit."""
        experts, top_k = len(self.up_EFD), self.router.config.top_k
        return self.routed_parameters() * (experts - top_k) // experts

    def experts(self) -> list[Callable[[Tensor], Tensor]]:
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
                    inner_NF = self.activation(inner_NF)
                else:
                    inner_NF = self.activation(F.linear(hidden_ND, gate, gate_bias_F[number])) * inner_NF
                return F.linear(inner_NF, down_DF[number], down_bias_D[number])

            return compute

        return [expert(number) for number in range(count)]


def loop(moe: MoE, hidden_TD: Tensor, routing: Routing) -> Tensor:
    output_TD = torch.zeros_like(hidden_TD, dtype=torch.float32)
    for number, expert in enumerate(moe.experts()):
        mine_P = routing.expert_P == number
        token_N = routing.token_P[mine_P]
        weighted_ND = expert(hidden_TD[token_N]).float() * routing.weight_P[mine_P, None]
        output_TD = output_TD.index_add(0, token_N, weighted_ND)
    return output_TD.to(hidden_TD.dtype)


def grouped(moe: MoE, hidden_TD: Tensor, routing: Routing) -> Tensor:
    order_P = routing.expert_P.argsort(stable=True)
    token_P = routing.token_P[order_P]
    counts = routing.stats.count_E.tolist()
    gathered_PD = hidden_TD[token_P]
    output_PD = torch.cat(
        [
            expert(tokens)
            for expert, tokens in zip(moe.experts(), torch.split(gathered_PD, counts), strict=True)
            if len(tokens)
        ]
    )
    return add_up(output_PD, token_P, routing.weight_P[order_P], hidden_TD)


ROADS: dict[str, Road] = {
    "loop": loop,
    "grouped": grouped,
    "grouped_mm": grouped_mm,
    "fused": fused,
}
