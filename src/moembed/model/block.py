"""One layer of the encoder: attention and feed-forward, each with its norm and its residual.

post-norm:  h = norm1(x + attention(x));  y = norm2(h + ffn(h))
pre-norm:   h = x + attention(norm1(x));  y = h + ffn(norm2(h))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from moembed.config import Strict
from moembed.model.attention import Attention, AttentionSpec
from moembed.model.norm import NormSpec, make_norm
from moembed.model.rope import CosSin
from moembed.moe.ffn import FeedForward, FeedForwardSpec
from moembed.moe.layer import MoE, MoESpec
from moembed.types import RouterStats


class LayerSpec(Strict):
    """One layer.

    Attributes:
        place: whether the norms stand after the residual is added (``post``) or before each part (``pre``).
        moe: experts in the place of the one feed-forward block; None: it is dense.
        shares: number of an earlier layer, from 0, whose weights this one uses; None: it has its own.
    """

    attention: AttentionSpec
    ffn: FeedForwardSpec
    moe: MoESpec | None = None
    norm: NormSpec = NormSpec()
    place: Literal["post", "pre"] = "post"
    shares: int | None = Field(default=None, ge=0)


class Block(nn.Module):
    def __init__(self, width: int, spec: LayerSpec, layer: int) -> None:
        super().__init__()
        self.attention = Attention(width, spec.attention)
        self.attention_norm = make_norm(width, spec.norm)
        self.ffn: FeedForward | MoE
        self.ffn = MoE(width, spec.ffn, spec.moe, layer) if spec.moe else FeedForward(width, spec.ffn)
        self.ffn_norm = make_norm(width, spec.norm)
        self.pre = spec.place == "pre"

    def forward(
        self,
        states_TD: Tensor,
        length_B: Sequence[int],
        cos_sin: CosSin | None,
        dropout: float,
        backends: tuple[str, str],
    ) -> tuple[Tensor, Tensor, RouterStats | None]:
        """The next states, the output of the feed-forward part alone, and what the router did, if any.

        ``backends``: of attention and of the experts.
        """
        # attention
        input_TD = self.attention_norm(states_TD) if self.pre else states_TD
        mixed_TD = self.attention(input_TD, length_B, cos_sin, dropout, backends[0])
        states_TD = states_TD + F.dropout(mixed_TD, dropout, training=dropout > 0)
        if not self.pre:
            states_TD = self.attention_norm(states_TD)
        # feed-forward
        input_TD = self.ffn_norm(states_TD) if self.pre else states_TD
        stats = None
        if isinstance(self.ffn, MoE):
            output_TD, stats = self.ffn(input_TD, length_B, backends[1])
        else:
            output_TD = self.ffn(input_TD)
        output_TD = F.dropout(output_TD, dropout, training=dropout > 0)
        states_TD = states_TD + output_TD
        if not self.pre:
            states_TD = self.ffn_norm(states_TD)
        return states_TD, output_TD, stats
