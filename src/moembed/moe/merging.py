"""Soft merging: the experts of a layer are averaged into one for every text, and its tokens enter that one.

``W_b = sum_e p_be W_e`` for text b, of all matrices and biases, with the probabilities p of a router that
reads the mean of the text's states (SMEAR: Muqeeth et al., arXiv 2306.03745). Nothing is chosen, so the
router gets the exact gradient; a text costs one expert and the averaging. The abstract of the paper and
code of others were at hand. What these have beside it, dropping whole experts at random while training, is
not here.

The averaged experts are experts like any others, one for each text, so every backend computes them. They take
much memory: in training ``TEXTS`` texts are averaged at a time, and again in the backward pass. In inference
it is one text at a time, so its vector does not depend on its batch-mates to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moembed.moe.backends import BY_NAME, named
from moembed.moe.experts import Experts
from moembed.moe.router import Routing
from moembed.packing import spread

TEXTS = 16  # averaged at a time in training


def merged(experts: Experts, weight_BE: Tensor) -> Experts:
    """One expert for each text: ``sum_e weight_be * expert_e`` of every tensor."""

    def average(tensor: Tensor) -> Tensor:
        with torch.autocast(tensor.device.type, enabled=False):
            flat_BX = weight_BE.to(tensor.dtype) @ tensor.flatten(1)
        return flat_BX.view(len(weight_BE), *tensor.shape[1:])

    return _with_tensors(experts, average)


def soft_merging(experts: Experts, hidden_TD: Tensor, routing: Routing, backend: str) -> Tensor:
    """What the averaged experts make of the tokens of their texts; ``routing.length_B`` says where texts end.

    Raises:
        UserError: there is no such backend.
    """
    assert routing.length_B is not None
    length_B = [length for length in routing.length_B if length]
    count = len(experts.up_EFD)
    start_B = torch.tensor([0, *length_B]).cumsum(0)[:-1].to(hidden_TD.device)
    weight_BE = routing.weight_P.view(-1, count)[start_B]  # all tokens of a text have the same
    learns = torch.is_grad_enabled()
    parts, size = [], TEXTS if learns else 1
    rest_TD = hidden_TD
    for start in range(0, len(length_B), size):
        own_B = length_B[start : start + size]
        own_TD, rest_TD = rest_TD[: sum(own_B)], rest_TD[sum(own_B) :]
        arguments = (experts, own_TD, weight_BE[start : start + size], own_B, backend, routing)
        if learns:
            parts.append(checkpoint(_texts, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_texts(*arguments))
    return torch.cat(parts) if parts else torch.zeros_like(hidden_TD)


def _texts(
    experts: Experts,
    hidden_TD: Tensor,
    weight_BE: Tensor,
    length_B: Sequence[int],
    wanted: str,
    whole: Routing,
) -> Tensor:
    """Some texts, each on its own averaged expert."""
    own = merged(experts, weight_BE)
    run = (named(own, hidden_TD, wanted) or BY_NAME["grouped"]).run
    device = hidden_TD.device
    token_P = torch.arange(len(hidden_TD), device=device)
    routing = replace(
        whole,
        token_P=token_P,
        expert_P=spread(torch.arange(len(length_B), device=device), length_B),
        weight_P=whole.weight_P.new_ones(len(token_P)),
        stats=replace(whole.stats, tokens=len(token_P)),
        count_E=torch.tensor(length_B, device=device),
    )
    return run(own, hidden_TD, routing)


def _with_tensors(experts: Experts, change: Callable[[Tensor], Tensor]) -> Experts:
    changes: dict[str, Any] = {
        field.name: change(value)
        for field in fields(experts)
        if isinstance(value := getattr(experts, field.name), Tensor)
    }
    return replace(experts, **changes)
