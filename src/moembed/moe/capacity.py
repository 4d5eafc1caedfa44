"""Capacity: how many tokens of a text an expert takes at most; none by default.

``C = ceil(capacity_factor * top_k * S / E)`` tokens of each text of S tokens. Switch (Fedus et al., arXiv
2101.03961) counts the tokens of a batch where we count those of a text: so a text keeps its experts whatever
its batch-mates are. Of the tokens that want an expert the most probable stay, ties to the earlier one, as in
the batch prioritized routing of Riquelme et al. (arXiv 2106.05974).

What goes beyond is dropped after the weights of a token are normalised, so the part of that expert is
missing; a token that loses all of its experts keeps its residual alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moembed.packing import on_device, spread


def capacities(length_B: Sequence[int], factor: float, top_k: int, num_experts: int) -> list[int]:
    """How many tokens of each text an expert takes at most."""
    return [math.ceil(factor * top_k * length / num_experts - 1e-9) for length in length_B]


def within_capacity(
    prob_P: Tensor,
    token_P: Tensor,
    expert_P: Tensor,
    length_B: Sequence[int],
    num_experts: int,
    capacity_B: Sequence[int],
) -> Tensor:
    """Which pairs stay, ``(P,)`` booleans; the pairs stand in the order of their tokens."""
    device = token_P.device
    text_P = spread(torch.arange(len(length_B), device=device), length_B)[token_P]
    group_P = text_P * num_experts + expert_P
    order_P = prob_P.argsort(descending=True, stable=True)
    order_P = order_P[group_P[order_P].argsort(stable=True)]  # by text and expert, the most probable first
    sorted_P = group_P[order_P]
    place_P = torch.arange(len(order_P), device=device) - torch.searchsorted(sorted_P, sorted_P)
    kept_P = torch.empty_like(order_P, dtype=torch.bool)
    kept_P[order_P] = place_P < on_device(capacity_B, device)[text_P[order_P]]
    return kept_P
