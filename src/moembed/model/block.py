"""One layer of the encoder: attention and feed-forward, each with its norm and its residual.

post-norm:  h = norm1(x + attention(x));  y = norm2(h + ffn(h))
pre-norm:   h = x + attention(norm1(x));  y = h + ffn(norm2(h))
sandwich:   h = x + norm1b(attention(norm1(x)));  y = h + norm2b(ffn(norm2(h)))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from moembed.config import Strict
from moembed.model.attention import Attention, AttentionSpec
from moembed.model.norm import NormSpec, make_norm
from moembed.model.rope import CosSin
from moembed.moe.ffn import FeedForward, FeedForwardSpec
from moembed.moe.layer import MoE, MoESpec
from moembed.types import NO_KEYS, RouterStats, TokenKeys


class LayerSpec(Strict):
    """One layer.

    Attributes:
        place: whether the norms stand after the residual is added (``post``), before each part (``pre``), or
            before and behind it (``sandwich``).
        attention_norm: False: attention reads the states as they are, which pre-norm layers alone can do.
        moe: experts in the place of the one feed-forward block; None: it is dense.
        shares: number of an earlier layer, from 0, whose weights this one uses; None: it has its own.
    """

    attention: AttentionSpec
    ffn: FeedForwardSpec
    moe: MoESpec | None = None
    norm: NormSpec = NormSpec()
    place: Literal["post", "pre", "sandwich"] = "post"
    attention_norm: bool = True
    shares: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _fits_together(self) -> LayerSpec:
        if not self.attention_norm and self.place != "pre":
            raise ValueError("a layer without attention_norm must be pre-norm")
        return self


class Block(nn.Module):
    def __init__(self, width: int, spec: LayerSpec, layer: int) -> None:
        super().__init__()
        self.attention = Attention(width, spec.attention)
        self.attention_norm = make_norm(width, spec.norm) if spec.attention_norm else None
        self.ffn: FeedForward | MoE
        self.ffn = MoE(width, spec.ffn, spec.moe, layer) if spec.moe else FeedForward(width, spec.ffn)
        self.ffn_norm = make_norm(width, spec.norm)
        both = spec.place == "sandwich"
        self.attention_out_norm = make_norm(width, spec.norm) if both else None
        self.ffn_out_norm = make_norm(width, spec.norm) if both else None
        self.pre = spec.place != "post"

    def forward(
        self,
        states_TD: Tensor,
        length_B: Sequence[int],
        cos_sin: CosSin | None,
        dropout: float,
        backends: tuple[str, str],
        bias_HN: Tensor | None = None,
        keys: TokenKeys = NO_KEYS,
        causal: bool = False,
    ) -> tuple[Tensor, Tensor, RouterStats | None]:
        """The next states, the output of the feed-forward part alone, and what the router did, if any.

        ``backends``: of attention and of the experts; ``bias_HN``: of the scores, by distance;
        ``keys``: what routers look up; ``causal``: tokens see only those before them, whatever the spec says.
        """
        # attention
        before = self.attention_norm if self.pre else None
        input_TD = before(states_TD) if before is not None else states_TD
        mixed_TD = self.attention(input_TD, length_B, cos_sin, dropout, backends[0], bias_HN, causal)
        if self.attention_out_norm is not None:
            mixed_TD = self.attention_out_norm(mixed_TD)
        states_TD = states_TD + F.dropout(mixed_TD, dropout, training=dropout > 0)
        if not self.pre and self.attention_norm is not None:
            states_TD = self.attention_norm(states_TD)
        # feed-forward
        input_TD = self.ffn_norm(states_TD) if self.pre else states_TD
        stats = None
        if isinstance(self.ffn, MoE):
            output_TD, stats = self.ffn(input_TD, length_B, backends[1], keys)
        else:
            output_TD = self.ffn(input_TD)
        if self.ffn_out_norm is not None:
            output_TD = self.ffn_out_norm(output_TD)
        output_TD = F.dropout(output_TD, dropout, training=dropout > 0)
        states_TD = states_TD + output_TD
        if not self.pre:
            states_TD = self.ffn_norm(states_TD)
        return states_TD, output_TD, stats
