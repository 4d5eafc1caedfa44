"""Who decides which experts a token meets: one entry of ``ROUTERS`` for each ``RouterConfig.kind``.

A router that learns scores every expert for every token; what it does is a list of (token, expert) pairs.

- ``token_choice``: each token takes its ``top_k`` most probable experts (Shazeer et al., arXiv 1701.06538).
- ``expert_choice``: each expert takes the most probable tokens *of each text*, ``ceil(top_k * S / E)`` of its
  S tokens (Zhou et al., arXiv 2202.09368). Choosing inside the text keeps a vector independent of its
  batch-mates.
- ``centroid``: each token takes the experts whose centroids are nearest to its state, by cosine or dot
  product; upcycling by clusters puts the centroids where states are (arXiv 2604.13508).
- ``soft_merging``: nothing is chosen. All experts are averaged into one for every text, by the probabilities
  of the mean of its states (SMEAR, arXiv 2306.03745; see `moembed.moe.merging`).

A router that does not learn looks the experts of a token up:

- ``tag``: those of the tag of its text, such as its language or its role. Known routing by language group is
  what MoL does, by task MoTE (arXiv 2506.17781), by domain Hallee et al. (arXiv 2401.15713).
- ``hash``: those of its token id, the same wherever the token stands (Roller et al., arXiv 2106.04426). The
  hash is random, not balanced: frequent tokens make some experts busier than others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.moe.router_config import RouterConfig
from moembed.packing import offsets, on_device, positions, spread
from moembed.types import TokenKeys, UserError

_WORD = 0xFFFFFFFF  # the 32 bits that a hash is made of

Choose = Callable[[Tensor, int, Sequence[int]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Learned:
    """``choose(score_TE, top_k, length_B)`` gives the tokens and the experts of all pairs, by token.

    The logits are ``states(config, hidden_TD, length_B) @ rows(config, weight_ED).T``.
    """

    choose: Choose
    states: Callable[[RouterConfig, Tensor, Sequence[int]], Tensor] = lambda _, hidden_TD, __: hidden_TD
    rows: Callable[[RouterConfig, Tensor], Tensor] = lambda _, weight_ED: weight_ED


@dataclass(frozen=True)
class Known:
    """``experts(config, num_experts, keys)`` gives the ``top_k`` experts of every token, ``(T, K)``."""

    experts: Callable[[RouterConfig, int, TokenKeys], Tensor]


def token_choice(score_TE: Tensor, top_k: int, length_B: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The ``top_k`` experts of highest score of every token."""
    return as_pairs(score_TE.topk(top_k, dim=-1).indices)


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


def all_experts(score_TE: Tensor, top_k: int, length_B: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Every expert of every token."""
    tokens, num_experts = score_TE.shape
    return as_pairs(torch.arange(num_experts, device=score_TE.device).expand(tokens, -1))


def text_means(config: RouterConfig, hidden_TD: Tensor, length_B: Sequence[int]) -> Tensor:
    """At every token the mean of the states of its text."""
    device = hidden_TD.device
    text_T = spread(torch.arange(len(length_B), device=device), length_B)
    sum_BD = hidden_TD.new_zeros(len(length_B), hidden_TD.shape[1]).index_add(0, text_T, hidden_TD)
    return (sum_BD / on_device(length_B, device)[:, None].clamp(min=1))[text_T]


def centroid_states(config: RouterConfig, hidden_TD: Tensor, length_B: Sequence[int] = ()) -> Tensor:
    """The states that are compared with the centroids: of length 1 for a cosine."""
    return F.normalize(hidden_TD, dim=-1) if config.similarity == "cosine" else hidden_TD


def centroid_rows(config: RouterConfig, weight_ED: Tensor) -> Tensor:
    """``c_e / temperature``, for a cosine with ``|c_e| = 1``; without gradient where they stay."""
    rows_ED = weight_ED if config.trainable else weight_ED.detach()
    return centroid_states(config, rows_ED) / config.temperature


def tag(config: RouterConfig, num_experts: int, keys: TokenKeys) -> Tensor:
    """The experts of the tag of every token's text; tags are numbered in the order of their names.

    Raises:
        UserError: nobody said which tags the texts have.
    """
    if keys.tag_T is None:
        raise UserError(missing_tags(config))
    table = torch.tensor([config.tags[name] for name in sorted(config.tags)])
    return table.to(keys.tag_T.device, non_blocking=True)[keys.tag_T]


def hash_(config: RouterConfig, num_experts: int, keys: TokenKeys) -> Tensor:
    """The ``top_k`` experts e of largest ``mix(t * E + e XOR mix(seed))``, t the id of the token.

    ``mix`` maps the numbers below 2^32 one to one, so no two experts of a token are equal.
    """
    assert keys.token_T is not None, "the encoder gives the ids of all tokens"
    expert_E = torch.arange(num_experts, device=keys.token_T.device)
    number_TE = (keys.token_T[:, None] * num_experts + expert_E) & _WORD
    return _mixed(number_TE ^ _mixed(torch.tensor(config.seed)).item()).topk(config.top_k, dim=1).indices


def _mixed(number: Tensor) -> Tensor:
    """Shifts and products by odd numbers, each of which can be undone, on the last 32 of 64 bits."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x21F0AAAD)):
        number = ((number ^ (number >> shift)) * factor) & _WORD
    return number ^ (number >> 15)


def missing_tags(config: RouterConfig) -> str:
    """What to tell where texts come without a tag."""
    known = ", ".join(sorted(config.tags))
    return (
        f"this model chooses its experts by the tag of a text (known: {known}), and nothing says which tag "
        "these texts have: pass tag, or for a command set MOEMBED_TAG"
    )


def as_pairs(expert_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and experts of all pairs, in the order of the tokens."""
    token_T = torch.arange(len(expert_TK), device=expert_TK.device)
    return token_T.repeat_interleave(expert_TK.shape[1]), expert_TK.reshape(-1)


ROUTERS: dict[str, Learned | Known] = {
    "token_choice": Learned(token_choice),
    "expert_choice": Learned(expert_choice),
    "centroid": Learned(token_choice, centroid_states, centroid_rows),
    "soft_merging": Learned(all_experts, text_means),
    "tag": Known(tag),
    "hash": Known(hash_),
}
