"""The encoder: embeddings, then blocks of attention and feed-forward, dense or Mixture-of-Experts.

    post-norm:  h = norm1(x + attention(x));  y = norm2(h + ffn(h))
    pre-norm:   h = x + attention(norm1(x));  y = h + ffn(norm2(h)),  of which a depth shows ffn(norm2(h)):
                NomicBERT's published code leaves the residual out of its last state, and has no final norm

It runs on packed batches and returns the hidden states of exactly the depths asked for, stopping at the
deepest: sub-networks, early exits and probes are an argument, never a fork of this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moembed.config import Strict
from moembed.model.attention import Attention
from moembed.model.rope import rotation
from moembed.moe.backends import AUTO
from moembed.moe.ffn import Activation, FeedForward
from moembed.moe.layer import MoE, MoEConfig
from moembed.packing import positions
from moembed.types import RouterStats, UserError


class EncoderConfig(Strict):
    """Everything the architecture depends on. ``moe`` None means every layer is dense."""

    family: str
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    ffn_width: int
    activation: Activation = "gelu"
    gated: bool = False
    attention_bias: bool = True
    ffn_bias: bool = True
    norm: Literal["post", "pre"] = "post"
    norm_eps: float = 1e-12
    position: Literal["absolute", "rope"] = "absolute"
    max_positions: int = 512  # rows of the position table, or the length the rotary model was trained for
    position_offset: int = 0  # RoBERTa counts positions from pad_token_id + 1
    rope_base: float = 10000.0
    num_token_types: int = Field(default=2, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    moe: MoEConfig | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> EncoderConfig:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.moe and not set(self.moe.layers) <= set(range(self.num_layers)):
            raise ValueError(f"moe.layers {self.moe.layers} go beyond the {self.num_layers} layers")
        return self

    @property
    def max_length(self) -> int:
        """Longest text, in tokens."""
        return self.max_positions - self.position_offset


class Block(nn.Module):
    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.num_heads, config.attention_bias)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        shape = (config.width, config.ffn_width, config.activation, config.gated)
        self.ffn: FeedForward | MoE
        if config.moe and layer in config.moe.layers:
            self.ffn = MoE(*shape, config.moe, layer)
        else:
            self.ffn = FeedForward(*shape, config.ffn_bias)
        self.ffn_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.pre = config.norm == "pre"

    def forward(
        self,
        states_TD: Tensor,
        length_B: Sequence[int],
        turn: tuple[Tensor, Tensor] | None,
        dropout: float,
        roads: tuple[str, str],
    ) -> tuple[Tensor, Tensor, RouterStats | None]:
        """The next states, the output of the feed-forward part alone, and what the router did, if any."""
        input_TD = self.attention_norm(states_TD) if self.pre else states_TD
        mixed_TD = self.attention(input_TD, length_B, turn, dropout, roads[0])
        states_TD = states_TD + F.dropout(mixed_TD, dropout, training=dropout > 0)
        if not self.pre:
            states_TD = self.attention_norm(states_TD)
        input_TD = self.ffn_norm(states_TD) if self.pre else states_TD
        stats = None
        if isinstance(self.ffn, MoE):
            output_TD, stats = self.ffn(input_TD, length_B, roads[1])
        else:
            output_TD = self.ffn(input_TD)
        output_TD = F.dropout(output_TD, dropout, training=dropout > 0)
        states_TD = states_TD + output_TD
        if not self.pre:
            states_TD = self.ffn_norm(states_TD)
        return states_TD, output_TD, stats


class Encoder(nn.Module):
    """Token ids -> hidden states.

    ``attention_road`` and ``moe_road`` name one of several implementations of the same values; ``auto``
    leaves the choice to `moembed.moe.backends`. ``activation_checkpointing`` keeps the states between blocks
    and computes the rest again for backward.
    """

    attention_road = AUTO
    moe_road = AUTO
    activation_checkpointing = False

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.word = _table(config.vocab_size, config.width)
        absolute = config.position == "absolute"
        self.position = _table(config.max_positions, config.width) if absolute else None
        self.token_type = _table(config.num_token_types, config.width) if config.num_token_types else None
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))

    def forward(
        self, token_T: Tensor, length_B: Sequence[int], depths: Sequence[int] | None = None
    ) -> tuple[dict[int, Tensor], list[RouterStats]]:
        """Run packed texts through the first ``max(depths)`` layers.

        Args:
            token_T: int64 token ids of all texts, end to end, shortest text first.
            length_B: tokens of each text.
            depths: after how many layers to return the states; 0 is the embedding. Default: after the last.

        Returns:
            ``{depth: hidden_TD}`` and the router statistics of every MoE layer that ran.
        """
        config = self.config
        depths = depths if depths is not None else [config.num_layers]
        if not set(depths) <= set(range(config.num_layers + 1)) or not depths:
            raise UserError(f"depths {list(depths)} are not within 0..{config.num_layers}")
        if length_B and max(length_B) > config.max_length:
            raise UserError(f"a text has {max(length_B)} tokens, the model reads {config.max_length}")
        dropout = config.dropout if self.training else 0.0
        position_T = positions(length_B, token_T.device)

        states_TD = self.word(token_T)
        if self.token_type is not None:
            states_TD = states_TD + self.token_type.weight[0]
        if self.position is not None:
            states_TD = states_TD + self.position(position_T + config.position_offset)
        turn = None
        if config.position == "rope":
            turn = rotation(position_T, config.width // config.num_heads, config.rope_base)
        states_TD = F.dropout(self.norm(states_TD), dropout, training=dropout > 0)

        hidden = {0: states_TD} if 0 in depths else {}
        router: list[RouterStats] = []
        for depth, block in enumerate(self.layers[: max(depths)], start=1):
            arguments = (states_TD, length_B, turn, dropout, (self.attention_road, self.moe_road))
            if self.activation_checkpointing and torch.is_grad_enabled():
                states_TD, output_TD, stats = checkpoint(block, *arguments, use_reentrant=False)
            else:
                states_TD, output_TD, stats = block(*arguments)
            if stats is not None:
                router.append(stats)
            if depth in depths:
                hidden[depth] = output_TD if config.norm == "pre" else states_TD
        return hidden, router


def _table(rows: int, width: int) -> nn.Embedding:
    """An embedding without values; drawing them, only to read others, would load torch's compiler."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


def num_parameters(config: EncoderConfig, active: bool = False) -> int:
    """Parameters of the encoder; ``active`` counts what one token can touch.

    Active = everything but the ``E - k`` routed experts a token does not visit in each MoE layer. The whole
    vocabulary table counts, as in the published "305M active" of Nomic Embed v2.
    """
    with torch.device("meta"):
        encoder = Encoder(config)
    total = sum(parameter.numel() for parameter in encoder.parameters())
    if not active:
        return total
    return total - sum(module.idle_parameters() for module in encoder.modules() if isinstance(module, MoE))


def initialise(encoder: Encoder, std: float = 0.02, seed: int = 0) -> None:
    """Fresh weights: normal(0, std) for every matrix, zero for every bias, one for every norm scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
            elif parameter.ndim == 1 or "bias" in name:
                parameter.zero_()
            else:
                parameter.normal_(0, std, generator=generator)
