"""The backend ``loop``: slow and obvious, the reference of all others."""

from __future__ import annotations

import torch
from torch import Tensor

from moembed.moe.experts import Experts
from moembed.moe.router import Routing


def loop(experts: Experts, hidden_TD: Tensor, routing: Routing) -> Tensor:
    """For every expert: pick its tokens, compute, add."""
    output_TD = torch.zeros_like(hidden_TD, dtype=torch.float32)
    for number, expert in enumerate(experts.functions()):
        mine_P = routing.expert_P == number
        token_N = routing.token_P[mine_P]
        weighted_ND = expert(hidden_TD[token_N]).float() * routing.weight_P[mine_P, None]
        output_TD = output_TD.index_add(0, token_N, weighted_ND)
    return output_TD.to(hidden_TD.dtype)
