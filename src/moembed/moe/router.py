"""Which experts see which tokens: hidden states -> routed (token, expert, weight) pairs.

Both routers score tokens with a bias-free linear layer and an fp32 softmax over all experts, and both
describe their decision as a flat list of P pairs, so the MoE block needs to know neither.

- ``token_choice``: each token takes its ``top_k`` most probable experts (Shazeer et al., arXiv 1701.06538).
- ``expert_choice``: each expert takes the most probable tokens *of each text*, ``ceil(top_k * S / E)`` of its
  S tokens (Zhou et al., arXiv 2202.09368). Choosing inside the text keeps a vector independent of its
  batch-mates.

Nothing is ever dropped for capacity, and a packed batch holds no padding that could be routed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from moembed.config import Strict
from moembed.packing import offsets, on_device, positions, spread
from moembed.types import RouterStats


class RouterConfig(Strict):
    """How tokens meet experts.

    ``normalize`` divides the chosen weights of a token by their p-norm (1: they sum to 1); None keeps the raw
    probabilities, as in arXiv 2502.07972. ``jitter`` multiplies the router's input by uniform
    noise in [1 - jitter, 1 + jitter] while training. ``selection_bias`` adds to the probabilities of each
    expert a bias that takes part in the choice and in nothing else; training moves it to balance the load
    (Wang et al., arXiv 2408.15664).
    """

    kind: Literal["token_choice", "expert_choice"] = "token_choice"
    top_k: int = Field(default=2, ge=1)
    normalize: float | None = Field(default=1.0, gt=0)
    jitter: float = Field(default=0.0, ge=0, lt=1)
    selection_bias: bool = False

    @model_validator(mode="after")
    def _tokens_choose(self) -> RouterConfig:
        if self.selection_bias and self.kind != "token_choice":
            raise ValueError("selection_bias is for token_choice: experts that choose are balanced by nature")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A router without the bias is written as it was before there was one: names made of it stay."""
        values = write(self)
        if not self.selection_bias:
            values.pop("selection_bias", None)
        return values


class Pairs(NamedTuple):
    """P routed pairs in the order of their tokens, and the probability of each."""

    token_P: Tensor
    expert_P: Tensor
    weight_P: Tensor
    prob_P: Tensor


@dataclass(slots=True)
class Routing:
    """P routed pairs in the order of their tokens, and what the router did, as sums and by token."""

    token_P: Tensor
    expert_P: Tensor
    weight_P: Tensor
    stats: RouterStats
    prob_P: Tensor  # probability of each pair, without gradient
    entropy_T: Tensor  # nats, without gradient


class Router(nn.Module):
    def __init__(self, width: int, num_experts: int, config: RouterConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.weight_ED = nn.Parameter(torch.empty(num_experts, width))
        self.bias_E: Tensor | None
        self.register_buffer("bias_E", torch.zeros(num_experts) if config.selection_bias else None)

    def forward(self, hidden_TD: Tensor, length_B: Sequence[int]) -> Routing:
        """Route packed tokens; ``length_B`` says where texts end, which only expert choice needs."""
        with torch.autocast(hidden_TD.device.type, enabled=False):
            states_TD = hidden_TD.float()
            if self.training and (jitter := self.config.jitter):
                states_TD = states_TD * torch.empty_like(states_TD).uniform_(1 - jitter, 1 + jitter)
            logit_TE = self.logits(states_TD)
            prob_TE = logit_TE.softmax(-1)
            pairs = self.pairs(prob_TE, length_B)
            with torch.no_grad():
                expert_E = torch.arange(prob_TE.shape[1], device=prob_TE.device)
                count_E = (pairs.expert_P == expert_E[:, None]).sum(1)  # bincount would wait for the GPU
                entropy_T = -(prob_TE * logit_TE.log_softmax(-1)).sum(-1)
            prob_P = pairs.prob_P.detach()
            stats = RouterStats(
                layer=self.layer,
                tokens=len(hidden_TD),
                count_E=count_E,
                prob_E=prob_TE.sum(0),
                z=logit_TE.logsumexp(-1).square().sum(),
                entropy=entropy_T.sum(),
                top_mass=prob_P.sum(),
            )
        return Routing(pairs.token_P, pairs.expert_P, pairs.weight_P, stats, prob_P, entropy_T)

    def pairs(self, prob_TE: Tensor, length_B: Sequence[int]) -> Pairs:
        """What the probabilities decide, without any statistics of it."""
        score_TE = prob_TE.detach() if self.bias_E is None else prob_TE.detach() + self.bias_E
        token_P, expert_P = ROUTERS[self.config.kind](score_TE, self.config.top_k, length_B)
        prob_P = weight_P = prob_TE[token_P, expert_P]
        if (power := self.config.normalize) is not None:
            power_T = prob_P.new_zeros(len(prob_TE)).index_add(0, token_P, prob_P**power)
            weight_P = prob_P / power_T[token_P] ** (1 / power)
        return Pairs(token_P, expert_P, weight_P, prob_P)

    def logits(self, states_TD: Tensor) -> Tensor:
        """A score per token and expert, fp32 ``(T, E)``."""
        return states_TD @ self.weight_ED.float().T


def token_choice(score_TE: Tensor, top_k: int, length_B: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The ``top_k`` experts of highest score of every token."""
    expert_TK = score_TE.topk(top_k, dim=-1).indices
    token_T = torch.arange(len(score_TE), device=score_TE.device)
    return token_T.repeat_interleave(top_k), expert_TK.reshape(-1)


def expert_choice(prob_TE: Tensor, top_k: int, length_B: Sequence[int]) -> tuple[Tensor, Tensor]:
    """For every expert the ``ceil(top_k * S / E)`` most probable tokens of each text, ties to the earlier."""
    num_experts, device = prob_TE.shape[1], prob_TE.device
    text_T = spread(torch.arange(len(length_B), device=device), length_B)
    by_prob_TE = prob_TE.argsort(dim=0, descending=True, stable=True)
    by_text_TE = text_T[by_prob_TE].argsort(dim=0, stable=True)
    token_TE = by_prob_TE.gather(0, by_text_TE)  # per expert: texts in order, best token of each text first
    capacity_B = [-(-top_k * length // num_experts) for length in length_B]
    start_B = on_device(offsets(length_B)[:-1], device)
    chosen_NE = token_TE[spread(start_B, capacity_B) + positions(capacity_B, device)]
    token_P, order_P = chosen_NE.reshape(-1).sort(stable=True)
    return token_P, torch.arange(num_experts, device=device).repeat(len(chosen_NE))[order_P]


ROUTERS: dict[str, Callable[[Tensor, int, Sequence[int]], tuple[Tensor, Tensor]]] = {
    "token_choice": token_choice,
    "expert_choice": expert_choice,
}
