"""The encoder: embeddings, then the layers of its spec, on packed batches.

It returns the hidden states of exactly the depths asked for, stopping at the deepest: sub-networks, early
exits and probes are an argument, never a fork of this file.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moembed.machine import AUTO
from moembed.model.block import Block
from moembed.model.embeddings import table, word_table
from moembed.model.norm import PlusOneRMSNorm, make_norm
from moembed.model.relative_bias import by_distance
from moembed.model.rope import CosSin, RopeSpec, cos_sin
from moembed.model.spec import EncoderSpec
from moembed.moe.layer import MoE
from moembed.packing import on_device, positions, row_padding, spread
from moembed.types import RouterStats, TokenKeys, UserError


class Encoder(nn.Module):
    """Token ids -> hidden states.

    ``attention_backend`` and ``moe_backend`` name one of several implementations of the same values; ``auto``
    takes the fastest. ``activation_checkpointing`` keeps the states between blocks and computes the rest
    again for backward.
    """

    attention_backend = AUTO
    moe_backend = AUTO
    activation_checkpointing = False

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        width, embeddings = spec.width, spec.embeddings
        self.word = word_table(embeddings, width)
        self.position = table(embeddings.positions.rows, width) if embeddings.positions else None
        self.token_type = table(embeddings.token_types, width) if embeddings.token_types else None
        self.norm = make_norm(width, embeddings.norm) if embeddings.norm else None
        heads, bias = spec.layers[0].attention.num_heads, spec.relative_bias
        self.relative_bias = table(bias.buckets, heads) if bias else None
        # a layer that shares another's weights has none: in its place stands an empty module
        self.layers = nn.ModuleList(
            Block(width, layer, number) if layer.shares is None else nn.Identity()
            for number, layer in enumerate(spec.layers)
        )
        self.final_norm = make_norm(width, spec.final_norm) if spec.final_norm else None

    def forward(
        self,
        token_T: Tensor,
        length_B: Sequence[int],
        depths: Sequence[int] | None = None,
        type_T: Tensor | None = None,
        tag_B: Sequence[int] | None = None,
        causal: bool = False,
    ) -> tuple[dict[int, Tensor], list[RouterStats]]:
        """Run packed texts through the first ``max(depths)`` layers.

        Args:
            token_T: int64 token ids of all texts, end to end, shortest text first.
            length_B: tokens of each text.
            depths: after how many layers to return the states, as a model of so many layers would give them;
                0 is the embedding. Default: after the last.
            type_T: int64, the row of the table of token types for every token; None: the first for all.
            tag_B: the number of each text's tag, see `moembed.model.tags`; None: they have none.
            causal: in this pass a token sees only itself and those before it, whatever the spec says.

        Returns:
            ``{depth: hidden_TD}`` and the router statistics of every MoE layer that ran.

        Raises:
            UserError: depths beyond the model, a text longer than it reads, no tags where routers need them.
        """
        spec = self.spec
        depths = depths if depths is not None else [spec.num_layers]
        if not set(depths) <= set(range(spec.num_layers + 1)) or not depths:
            raise UserError(f"depths {list(depths)} are not within 0..{spec.num_layers}")
        if length_B and max(length_B) > spec.max_length:
            raise UserError(f"a text has {max(length_B)} tokens, the model reads {spec.max_length}")
        dropout = spec.dropout if self.training else 0.0
        position_T = positions(length_B, token_T.device)
        tag_T = None if tag_B is None else spread(on_device(tag_B, token_T.device), length_B)
        keys = TokenKeys(token_T, tag_T)
        length_B = [length for length in length_B if length]  # a kernel divides by the length of a text

        # embeddings, and in training on a CPU rows of padding behind them
        real = len(token_T)
        padding = row_padding(real) if self.training and token_T.device.type == "cpu" else 0
        if padding:
            token_T, position_T = F.pad(token_T, (0, padding)), F.pad(position_T, (0, padding))
            type_T = None if type_T is None else F.pad(type_T, (0, padding))
        states_TD = F.dropout(self._embed(token_T, position_T, type_T), dropout, training=dropout > 0)
        hidden = {0: self._shown(states_TD[:real])} if 0 in depths else {}

        bias_HN = None
        if spec.relative_bias and self.relative_bias is not None:
            longest = max(length_B, default=1)
            bias_HN = by_distance(self.relative_bias.weight, longest, spec.relative_bias)

        # layers, up to the deepest that was asked for
        router: list[RouterStats] = []
        tables: dict[tuple[RopeSpec, int], CosSin] = {}
        for number, layer in enumerate(spec.layers[: max(depths)]):
            block = self.layers[number if layer.shares is None else layer.shares]
            rope, head_size = layer.attention.rope, layer.attention.head_size
            if rope and (rope, head_size) not in tables:
                tables[rope, head_size] = cos_sin(position_T, head_size, rope)
            angles = tables[rope, head_size] if rope else None
            backends = (self.attention_backend, self.moe_backend)
            arguments = (states_TD, length_B, angles, dropout, backends, bias_HN, keys, causal)
            if self.activation_checkpointing and torch.is_grad_enabled():
                states_TD, added_TD, stats = checkpoint(block, *arguments, use_reentrant=False)
            else:
                states_TD, added_TD, stats = block(*arguments)
            if stats is not None:
                router.append(stats)
            if number + 1 in depths:
                last_TD = states_TD if spec.last_state == "full" else added_TD
                hidden[number + 1] = self._shown(last_TD[:real] if padding else last_TD)
        return hidden, router

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and states; routers have their own."""
        return next(self.word.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.word.parameters()).device

    def _embed(self, token_T: Tensor, position_T: Tensor, type_T: Tensor | None = None) -> Tensor:
        states_TD: Tensor = self.word(token_T)
        if (scale := self.spec.embeddings.scale) != 1:
            states_TD = states_TD * scale
        if self.token_type is not None:
            types = self.token_type.weight[0] if type_T is None else self.token_type(type_T)
            states_TD = states_TD + types
        if self.position is not None and (rows := self.spec.embeddings.positions):
            states_TD = states_TD + self.position(position_T + rows.offset)
        return states_TD if self.norm is None else self.norm(states_TD)

    def _shown(self, states_TD: Tensor) -> Tensor:
        return states_TD if self.final_norm is None else self.final_norm(states_TD)


def skeleton(spec: EncoderSpec) -> Encoder:
    """The encoder without memory for its tensors: their names, shapes and numbers are there.

    Raises:
        UserError: a tensor of more bytes than can be counted.
    """
    try:
        with torch.device("meta"):
            return Encoder(spec)
    except (RuntimeError, TypeError) as error:  # torch counts in 64 bits
        reason = str(error).partition("\n")[0]
        raise UserError(f"no machine holds a model of these sizes ({reason})") from None


def num_parameters(spec: EncoderSpec, active: bool = False) -> int:
    """Parameters of the encoder; ``active`` counts what one token can touch.

    Active = everything but the ``E - k`` routed experts a token does not visit in each MoE layer. The whole
    vocabulary table counts, as in the "305M active" of arXiv 2502.07972.
    """
    encoder = skeleton(spec)
    total = sum(parameter.numel() for parameter in encoder.parameters())
    if not active:
        return total
    return total - sum(module.idle_parameters() for module in encoder.modules() if isinstance(module, MoE))


def code_dtypes(spec: EncoderSpec) -> dict[str, torch.dtype]:
    """The tensors of the encoder that hold whole numbers, and of which type: codes of a compressed table."""
    state = skeleton(spec).state_dict()
    return {name: tensor.dtype for name, tensor in state.items() if not tensor.is_floating_point()}


def tensor_shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the encoder."""
    return {name: tuple(tensor.shape) for name, tensor in skeleton(spec).state_dict().items()}


def initialise(encoder: Encoder, std: float = 0.02, seed: int = 0) -> None:
    """Fresh weights: normal(0, std) for every matrix, zero for every bias, norms that multiply by one.

    What LoRA experts add to their shared block is zero.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
            elif parameter.ndim == 1 or "bias" in name or "_B_E" in name:  # B of LoRA experts
                parameter.zero_()
            else:
                parameter.normal_(0, std, generator=generator)
        for module in encoder.modules():
            if isinstance(module, PlusOneRMSNorm):
                module.weight.zero_()
