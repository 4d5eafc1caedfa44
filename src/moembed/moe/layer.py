"""The Mixture-of-Experts feed-forward block, on backends that give the same values.

``y_t = sum over the pairs (t, e) of weight * expert_e(x_t)  [+ shared bias]  [+ shared experts(x_t)]``

`moembed.moe.backends` lists the backends and takes one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from moembed.config import Strict
from moembed.machine import AUTO
from moembed.moe.backends import choose
from moembed.moe.experts import Experts
from moembed.moe.ffn import FeedForward, FeedForwardSpec
from moembed.moe.lora import LoraSpec, parts, shapes, whole
from moembed.moe.router import Router, RouterConfig, Routing
from moembed.types import NO_KEYS, RouterStats, TokenKeys


class MoESpec(Strict):
    """The experts of one layer; `FeedForwardSpec` says what each of them is.

    ``bias``: ``each`` expert keeps the two biases of the dense block it came from; ``shared`` is one output
    bias per layer, added once (arXiv 2502.07972); ``none`` has none.

    ``num_shared_experts`` always see every token; together they are one block of that many times the hidden
    width. ``shared_weight`` says how their output meets that of the k routed ones: their ``sum``, or as in
    MegaBlocks the ``mean`` of k routed parts and one shared, ``(k * routed + shared) / (k + 1)``.

    ``lora`` makes every routed expert a low-rank change of one block that they share, whose biases are then
    those of all (`moembed.moe.lora`).
    """

    num_experts: int = Field(default=8, ge=1)
    num_shared_experts: int = Field(default=0, ge=0)
    shared_weight: Literal["sum", "mean"] = "sum"
    bias: Literal["each", "shared", "none"] = "each"
    router: RouterConfig = RouterConfig()
    lora: LoraSpec | None = None

    @model_validator(mode="after")
    def _chosen_experts_exist(self) -> MoESpec:
        if self.router.top_k > self.num_experts:
            raise ValueError(f"top_k {self.router.top_k} is more than num_experts {self.num_experts}")
        if self.router.tags:
            used = {expert for experts in self.router.tags.values() for expert in experts}
            if used != set(range(self.num_experts)):
                raise ValueError(
                    f"the tags use the experts {sorted(used)}, and num_experts is {self.num_experts}: each "
                    "expert serves some tag"
                )
        return self


class MoE(nn.Module):
    """Experts as 3-D parameters, one slice each; every slice is laid out as ``nn.Linear`` (out, in)."""

    def __init__(self, width: int, ffn: FeedForwardSpec, spec: MoESpec, layer: int) -> None:
        super().__init__()
        self.activation_name, self.num_experts = ffn.activation, spec.num_experts
        self.router = Router(width, spec.num_experts, spec.router, layer)
        self.lora, self.lora_parts = spec.lora, parts(width, ffn)
        if spec.lora is None:
            self._make_experts(width, ffn, spec)
        else:
            for part in self.lora_parts:
                made = shapes(part, spec.num_experts, spec.lora, spec.bias == "each")
                for name, shape in made.items():
                    self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.bias_D = nn.Parameter(torch.empty(width)) if spec.bias == "shared" else None
        self.shared, self.shared_weight = None, spec.shared_weight
        if spec.num_shared_experts:
            biased, wide = spec.bias != "none", ffn.width * spec.num_shared_experts
            block = ffn.model_copy(update={"width": wide, "bias": biased, "out_bias": biased})
            self.shared = FeedForward(width, block)

    def _make_experts(self, width: int, ffn: FeedForwardSpec, spec: MoESpec) -> None:
        experts, hidden, each = spec.num_experts, ffn.width, spec.bias == "each"
        self.up_EFD = nn.Parameter(torch.empty(experts, hidden, width))
        self.gate_EFD = nn.Parameter(torch.empty(experts, hidden, width)) if ffn.gated else None
        self.down_EDF = nn.Parameter(torch.empty(experts, width, hidden))
        self.up_bias_EF = nn.Parameter(torch.empty(experts, hidden)) if each else None
        self.gate_bias_EF = nn.Parameter(torch.empty(experts, hidden)) if each and ffn.gated else None
        self.down_bias_ED = nn.Parameter(torch.empty(experts, width)) if each else None

    @property
    def experts(self) -> Experts:
        """The routed ones; the tensors are the parameters themselves, of LoRA experts made of them."""
        if self.lora is not None:
            return self._lora_experts(self.lora)
        return Experts(
            self.activation_name,
            self.up_EFD,
            self.down_EDF,
            self.gate_EFD,
            self.up_bias_EF,
            self.gate_bias_EF,
            self.down_bias_ED,
        )

    def _lora_experts(self, lora: LoraSpec) -> Experts:
        matrix = {part.name: whole(part, lora, self.get_parameter) for part in self.lora_parts}
        bias = {
            part.name: self._parameters[part.bias].repeat(self.num_experts, 1)  # type: ignore[union-attr]
            for part in self.lora_parts
            if part.bias in self._parameters
        }
        return Experts(
            self.activation_name,
            matrix["up"],
            matrix["down"],
            matrix.get("gate"),
            bias.get("up"),
            bias.get("gate"),
            bias.get("down"),
        )

    def forward(
        self,
        hidden_TD: Tensor,
        length_B: Sequence[int],
        backend: str = AUTO,
        keys: TokenKeys = NO_KEYS,
    ) -> tuple[Tensor, RouterStats | None]:
        """The output, and what the router did; None where nobody counted it.

        Rows behind the last text are padding: they are not routed, and their output is zeros. ``keys``: of
        the tokens, without padding.
        """
        if padding := len(hidden_TD) - sum(length_B):
            output_TD, stats = self(hidden_TD[:-padding], length_B, backend, keys)
            return F.pad(output_TD, (0, 0, 0, padding)), stats
        routing = self.router(hidden_TD, length_B, keys)
        return self.completed(hidden_TD, self.routed(hidden_TD, routing, backend)), routing.stats

    def completed(self, hidden_TD: Tensor, output_TD: Tensor) -> Tensor:
        """The output of the routed experts with what every token gets: the shared bias, shared experts."""
        if self.bias_D is not None:
            output_TD = output_TD + self.bias_D
        if self.shared is not None:
            shared_TD = self.shared(hidden_TD)
            if self.shared_weight == "mean":
                top_k = self.router.config.top_k
                output_TD = (top_k * output_TD + shared_TD) / (top_k + 1)
            else:
                output_TD = output_TD + shared_TD
        return output_TD

    def routed(self, hidden_TD: Tensor, routing: Routing, backend: str) -> Tensor:
        """The weighted sum of the outputs of every token's experts."""
        experts = self.experts
        return choose(self.router, experts, hidden_TD, backend).run(experts, hidden_TD, routing)

    def routed_parameters(self) -> int:
        """Parameters of all routed experts; the router, the shared bias and shared experts are none.

        Of LoRA experts what each adds to the block that all share.
        """
        if self.lora is not None:
            names = [name for part in self.lora_parts for name in (part.first, part.second)]
            return sum(self.get_parameter(name).numel() for name in names)
        return sum(tensor.numel() for tensor in self.experts.tensors())

    def idle_parameters(self) -> int:
        """Parameters of the routed experts that one token does not visit."""
        experts, top_k = self.num_experts, self.router.config.top_k
        return self.routed_parameters() * (experts - top_k) // experts
