"""Which experts see which tokens: hidden states -> routed (token, expert, weight) pairs.

Routers that learn score tokens with a bias-free linear layer and an fp32 softmax over all experts; the others
look the experts of a token up and weigh them alike. All describe their decision as a flat list of P pairs, so
the MoE block needs to know none of them; `moembed.moe.router_kinds` lists them.

Nothing is dropped unless a capacity is asked for (`moembed.moe.capacity`), and a packed batch holds no
padding that could be routed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moembed.moe.capacity import capacities, within_capacity
from moembed.moe.router_config import RouterConfig
from moembed.moe.router_kinds import ROUTERS, Learned, as_pairs
from moembed.types import NO_KEYS, RouterStats, TokenKeys

__all__ = ["ROUTERS", "Pairs", "Router", "RouterConfig", "Routing"]


class Scores(NamedTuple):
    """What a router that learns thinks of every expert for every token."""

    logit_TE: Tensor
    prob_TE: Tensor


class Pairs(NamedTuple):
    """P routed pairs in the order of their tokens, and the probability of each.

    ``dropped_N`` are the experts of the pairs beyond capacity; None: there is no capacity.
    """

    token_P: Tensor
    expert_P: Tensor
    weight_P: Tensor
    prob_P: Tensor
    dropped_N: Tensor | None = None


@dataclass(slots=True)
class Routing:
    """P routed pairs in the order of their tokens, and what the router did, as sums and by token."""

    token_P: Tensor
    expert_P: Tensor
    weight_P: Tensor
    stats: RouterStats
    prob_P: Tensor  # probability of each pair, without gradient
    entropy_T: Tensor  # nats, without gradient
    count_E: Tensor  # pairs of each expert; those of the statistics include what was dropped


class Router(nn.Module):
    """``weight_ED`` is None where the router does not learn."""

    def __init__(self, width: int, num_experts: int, config: RouterConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.num_experts = config, layer, num_experts
        self.learned = isinstance(ROUTERS[config.kind], Learned)
        weight_ED = nn.Parameter(torch.empty(num_experts, width)) if self.learned else None
        self.weight_ED: nn.Parameter | None
        self.register_parameter("weight_ED", weight_ED)
        self.bias_E: Tensor | None
        self.register_buffer("bias_E", torch.zeros(num_experts) if config.selection_bias else None)

    def forward(self, hidden_TD: Tensor, length_B: Sequence[int], keys: TokenKeys = NO_KEYS) -> Routing:
        """Route packed tokens.

        Args:
            length_B: where texts end, which only expert choice needs.
            keys: what routers that do not learn look up.

        Raises:
            UserError: ``keys`` lacks what this router looks up.
        """
        with torch.autocast(hidden_TD.device.type, enabled=False):
            pairs, scores = self.route(hidden_TD, length_B, keys)
            prob_P = pairs.prob_P.detach()
            with torch.no_grad():
                count_E = chosen_E = self._counts(pairs.expert_P)
                if pairs.dropped_N is not None:
                    chosen_E = count_E + self._counts(pairs.dropped_N)
            if scores is None:
                prob_E, z = count_E / self.config.top_k, prob_P.new_zeros(())
                entropy_T = prob_P.new_full((len(hidden_TD),), math.log(self.config.top_k))
            else:
                logit_TE, prob_TE = scores
                prob_E, z = prob_TE.sum(0), logit_TE.logsumexp(-1).square().sum()
                entropy_T = -(prob_TE * logit_TE.log_softmax(-1)).sum(-1).detach()
            stats = RouterStats(
                layer=self.layer,
                tokens=len(hidden_TD),
                count_E=chosen_E,
                prob_E=prob_E,
                z=z,
                entropy=entropy_T.sum(),
                top_mass=prob_P.sum(),
                learned=self.learned,
                dropped=None if pairs.dropped_N is None else chosen_E.sum() - count_E.sum(),
            )
        return Routing(pairs.token_P, pairs.expert_P, pairs.weight_P, stats, prob_P, entropy_T, count_E)

    def _counts(self, expert_P: Tensor) -> Tensor:
        expert_E = torch.arange(self.num_experts, device=expert_P.device)
        return (expert_P == expert_E[:, None]).sum(1)  # bincount would wait for the GPU

    def route(
        self, hidden_TD: Tensor, length_B: Sequence[int], keys: TokenKeys = NO_KEYS
    ) -> tuple[Pairs, Scores | None]:
        """The pairs, without any statistics, and the scores of a router that learns."""
        kind, top_k = ROUTERS[self.config.kind], self.config.top_k
        if not isinstance(kind, Learned):
            token_P, expert_P = as_pairs(kind.experts(self.config, self.num_experts, keys))
            even_P = torch.full(token_P.shape, 1 / top_k, device=token_P.device)
            return Pairs(token_P, expert_P, self._weights(even_P, token_P, len(hidden_TD)), even_P), None
        states_TD = hidden_TD.float()
        if self.training and (jitter := self.config.jitter):
            states_TD = states_TD * torch.empty_like(states_TD).uniform_(1 - jitter, 1 + jitter)
        logit_TE = self.logits(kind.states(self.config, states_TD))
        prob_TE = logit_TE.softmax(-1)
        score_TE = prob_TE.detach() if self.bias_E is None else prob_TE.detach() + self.bias_E
        token_P, expert_P = kind.choose(score_TE, top_k, length_B)
        prob_P = prob_TE[token_P, expert_P]
        weight_P = self._weights(prob_P, token_P, len(prob_TE))
        pairs = self._limited(Pairs(token_P, expert_P, weight_P, prob_P), length_B)
        return pairs, Scores(logit_TE, prob_TE)

    def _limited(self, pairs: Pairs, length_B: Sequence[int]) -> Pairs:
        """The pairs within capacity, where there is one and it holds now."""
        config = self.config
        if config.capacity_factor is None or not (self.training or config.capacity_at_inference):
            return pairs
        capacity_B = capacities(length_B, config.capacity_factor, config.top_k, self.num_experts)
        token_P, expert_P, weight_P, prob_P, _ = pairs
        kept_P = within_capacity(prob_P.detach(), token_P, expert_P, length_B, self.num_experts, capacity_B)
        token_P, weight_P, prob_P = token_P[kept_P], weight_P[kept_P], prob_P[kept_P]
        return Pairs(token_P, expert_P[kept_P], weight_P, prob_P, dropped_N=expert_P[~kept_P])

    def _weights(self, prob_P: Tensor, token_P: Tensor, tokens: int) -> Tensor:
        if (power := self.config.normalize) is None:
            return prob_P
        power_T = prob_P.new_zeros(tokens).index_add(0, token_P, prob_P**power)
        return prob_P / power_T[token_P] ** (1 / power)

    def logits(self, states_TD: Tensor) -> Tensor:
        """A score per token and expert, fp32 ``(T, E)``."""
        return states_TD @ self.rows_ED().T

    def rows_ED(self) -> Tensor:
        """What states are multiplied with, fp32, of a router that learns."""
        kind = ROUTERS[self.config.kind]
        assert isinstance(kind, Learned)
        assert self.weight_ED is not None
        return kind.rows(self.config, self.weight_ED.float())
