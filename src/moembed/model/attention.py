"""Bidirectional self-attention over a packed batch, on roads that give the same values.

- ``packed`` hands every run of equally long texts to the fused kernel at once, so no padding exists.
- ``varlen`` hands it the whole batch, of whatever lengths. For GPUs.
- ``padded`` is the textbook road, softmax(QK'/sqrt(C) + mask)V on a padded batch: slow, obvious, the tests'
  reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moembed.model.rope import rotate
from moembed.moe.backends import AUTO, named, possible
from moembed.packing import offsets, on_device


class Attention(nn.Module):
    """Multi-head attention; one fused projection laid out ``[q | k | v]``, heads contiguous inside each."""

    def __init__(self, width: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        hidden_TD: Tensor,
        length_B: Sequence[int],
        rotation: tuple[Tensor, Tensor] | None = None,
        dropout: float = 0.0,
        road: str = AUTO,
    ) -> Tensor:
        tokens, width = hidden_TD.shape
        states = self.qkv(hidden_TD).view(tokens, 3, self.num_heads, width // self.num_heads)
        if states.device.type == "cpu" and not _has_bfloat16_tiles():
            states = states.float()
        query_THC, key_THC, value_THC = states.unbind(1)
        if rotation is not None:
            query_THC, key_THC = rotate(query_THC, *rotation), rotate(key_THC, *rotation)
        mixed_THC = ROADS[_choose(road, states, dropout)](query_THC, key_THC, value_THC, length_B, dropout)
        return self.out(mixed_THC.reshape(tokens, width).to(hidden_TD.dtype))


def packed(
    query_THC: Tensor, key_THC: Tensor, value_THC: Tensor, length_B: Sequence[int], dropout: float
) -> Tensor:
    """One fused call per run of equal lengths; texts in ``length_B`` stand shortest first."""
    runs = [(length, len(list(group))) for length, group in groupby(length_B)]
    sizes = [length * count for length, count in runs]
    split = [torch.split(states_THC, sizes) for states_THC in (query_THC, key_THC, value_THC)]
    mixed = []
    for (length, count), *states in zip(runs, *split, strict=True):
        query, key, value = (x.unflatten(0, (count, length)).transpose(1, 2) for x in states)
        with torch.autocast(query.device.type, enabled=False):
            attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        mixed.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed)


def varlen(
    query_THC: Tensor, key_THC: Tensor, value_THC: Tensor, length_B: Sequence[int], dropout: float
) -> Tensor:
    """One call of FlashAttention (Dao, arXiv 2307.08691), which reads where each text starts; no dropout."""
    assert dropout == 0
    start_B = on_device(offsets(length_B), query_THC.device, torch.int32)
    longest = max(length_B)
    return _varlen_attn()(query_THC, key_THC, value_THC, start_B, start_B, longest, longest)


@cache
def _varlen_attn() -> Any:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before PyTorch 2.10
        return None
    return varlen_attn


@cache
def _has_bfloat16_tiles() -> bool:
    """Without AMX, the fused CPU kernel is several times slower in bf16 than in fp32, backward above all."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def padded(
    query_THC: Tensor, key_THC: Tensor, value_THC: Tensor, length_B: Sequence[int], dropout: float
) -> Tensor:
    """The same by definition: pad to the longest text, mask, softmax, unpad."""
    real_BS = torch.arange(max(length_B))[None, :] < torch.tensor(length_B)[:, None]
    real_BS = real_BS.to(query_THC.device)

    def pad(states_THC: Tensor) -> Tensor:
        states = states_THC.new_zeros(*real_BS.shape, *states_THC.shape[1:])
        states[real_BS] = states_THC
        return states.transpose(1, 2)

    query, key, value = pad(query_THC), pad(key_THC), pad(value_THC)
    score_BHSS = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    score_BHSS = score_BHSS.masked_fill(~real_BS[:, None, None, :], float("-inf"))
    weight_BHSS = F.dropout(score_BHSS.softmax(-1), dropout)
    return (weight_BHSS @ value).transpose(1, 2)[real_BS]


ROADS: dict[str, Callable[[Tensor, Tensor, Tensor, Sequence[int], float], Tensor]] = {
    "packed": packed,
    "varlen": varlen,
    "padded": padded,
}


def _choose(wanted: str, states: Tensor, dropout: float) -> str:
    """``wanted``, or for ``auto`` the road ``varlen`` wherever it can run, else ``packed``."""
    name = named("attention_road", wanted, ROADS)
    if name not in (None, "varlen"):
        return name
    obstacle = _obstacle(states, dropout)
    if name is None:
        return "packed" if obstacle else "varlen"
    return possible("attention_road", name, obstacle, "packed")


def _obstacle(states: Tensor, dropout: float) -> str | None:
    """Why ``varlen`` cannot run on these queries, keys and values."""
    if states.device.type != "cuda" or not torch.backends.cuda.is_flash_attention_available():
        return "needs FlashAttention and a CUDA device"
    if torch.cuda.get_device_capability(states.device) < (8, 0):
        return "needs an Ampere GPU or a newer one"
    if states.dtype not in (torch.bfloat16, torch.float16):
        return "needs bfloat16 or float16"
    if states.shape[-1] % 8 or states.shape[-1] > 256:
        return "needs heads of a multiple of 8 up to 256 channels"
    if dropout:
        return "knows no dropout"
    return None if _varlen_attn() else "needs PyTorch 2.10"
