"""The layers of the frozen twin of an encoder: on packed matrices, without what only training needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moembed.inference.packed import Int8Table, Tiled, TiledExperts
from moembed.machine import AUTO
from moembed.moe.layer import MoE
from moembed.moe.router import Pairs, Router
from moembed.types import NO_KEYS, TokenKeys


class Packed(nn.Module):
    """A linear layer, a feed-forward block or a vocabulary table in its packed form."""

    def __init__(self, compute: Tiled | Int8Table) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, input_T: Tensor) -> Tensor:
        return self.compute(input_T)


class PackedRouter(Router):
    """A router whose product of a token does not depend, to the bit, on how many other tokens there are."""

    matrix: Tiled

    def logits(self, states_TD: Tensor) -> Tensor:
        return self.matrix(states_TD)


class PackedMoE(MoE):
    """Experts on packed matrices, and one weighted sum of the rows of each token.

    ``on_counts``, where it is set, is told the number of the layer and the tokens each expert was given.
    """

    packed: TiledExperts
    on_counts: Callable[[int, list[int]], object] | None = None

    def forward(
        self,
        hidden_TD: Tensor,
        length_B: Sequence[int],
        backend: str = AUTO,
        keys: TokenKeys = NO_KEYS,
    ) -> tuple[Tensor, None]:
        pairs, _ = self.router.route(hidden_TD, length_B, keys)
        return self.completed(hidden_TD, self.weighted(hidden_TD, pairs)), None

    def weighted(self, hidden_TD: Tensor, pairs: Pairs) -> Tensor:
        """``y_t = sum of weight_p * expert_p(x_t)`` over the pairs p of token t."""
        order_P = pairs.expert_P.argsort(stable=True)
        counts = pairs.expert_P.bincount(minlength=len(self.packed.experts)).tolist()
        if self.on_counts is not None:
            self.on_counts(self.router.layer, counts)
        output_PD = self.packed(hidden_TD, pairs.token_P[order_P], pairs.expert_P[order_P], counts)
        place_P = torch.empty_like(order_P)
        place_P[order_P] = torch.arange(len(order_P))
        return F.embedding_bag(
            place_P,
            output_PD,
            torch.searchsorted(pairs.token_P, torch.arange(len(hidden_TD))),
            per_sample_weights=pairs.weight_P.to(output_PD.dtype),
            mode="sum",
        )
