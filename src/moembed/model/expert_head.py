"""One block of experts between pooling and the embedding, which a text enters as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.types import UserError


@dataclass(frozen=True)
class ExpertHead:
    """``y = x + p_e * E_e(x)`` with e the most probable expert of ``p = softmax(W relu(V x + v) + w)``.

    An expert is ``E_e(x) = D_e relu(U_e x + u_e) + d_e``, from ``in_dim`` coordinates to ``hidden`` and back.
    While training, ``normal * softplus(N x + n)`` is added to what the softmax is made of, so that every
    expert is tried.

    After SB-MoE (Sokli et al., arXiv 2412.11864 and 2510.15683), whose published code has a hidden width of
    ``in_dim / 2`` in experts and router. There the output of the experts is made a unit vector before ``x``
    is added; with one expert this takes the weight ``p_e`` out again, and with it the gradient of the router.
    Here the weight stays. As there, nothing balances the experts.
    """

    in_dim: int
    num_experts: int
    hidden: int

    def __post_init__(self) -> None:
        if min(self.in_dim, self.num_experts, self.hidden) < 1:
            raise UserError("an expert head has at least one expert, of at least one hidden unit")

    @property
    def out_dim(self) -> int:
        return self.in_dim

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of the block."""
        width, experts, hidden = self.in_dim, self.num_experts, self.hidden
        return {
            "router.up.weight": (hidden, width),
            "router.up.bias": (hidden,),
            "router.down.weight": (experts, hidden),
            "router.down.bias": (experts,),
            "router.noise.weight": (experts, width),
            "router.noise.bias": (experts,),
            "up_EFD": (experts, hidden, width),
            "up_bias_EF": (experts, hidden),
            "down_EDF": (experts, width, hidden),
            "down_bias_ED": (experts, width),
        }

    def idle_parameters(self) -> int:
        """Parameters of the experts that one text does not visit."""
        routed = sum(prod(shape) for name, shape in self.shapes().items() if not name.startswith("router"))
        return routed * (self.num_experts - 1) // self.num_experts

    def forward(self, tensor: Callable[[str], Tensor], vector_BM: Tensor, noisy: bool) -> Tensor:
        """The block on pooled vectors, in fp32; ``tensor`` gives its tensors by name."""
        expert_B, weight_B = self.route(tensor, vector_BM, noisy)
        output_BM = vector_BM
        for expert in range(self.num_experts):
            own_B = (expert_B == expert).nonzero()[:, 0]
            up_FM, up_F = tensor("up_EFD")[expert].float(), tensor("up_bias_EF")[expert].float()
            down_MF, down_M = tensor("down_EDF")[expert].float(), tensor("down_bias_ED")[expert].float()
            added_NM = F.linear(F.relu(F.linear(vector_BM[own_B], up_FM, up_F)), down_MF, down_M)
            output_BM = output_BM.index_add(0, own_B, added_NM * weight_B[own_B, None])
        return output_BM

    def route(self, tensor: Callable[[str], Tensor], vector_BM: Tensor, noisy: bool) -> tuple[Tensor, Tensor]:
        """The expert of every text, and its probability."""

        def linear(name: str, input_BM: Tensor) -> Tensor:
            return F.linear(input_BM, tensor(f"{name}.weight").float(), tensor(f"{name}.bias").float())

        logit_BE = linear("router.down", F.relu(linear("router.up", vector_BM)))
        if noisy:
            logit_BE = logit_BE + torch.randn_like(logit_BE) * F.softplus(linear("router.noise", vector_BM))
        weight_B, expert_B = logit_BE.softmax(-1).max(-1)
        return expert_B, weight_B
