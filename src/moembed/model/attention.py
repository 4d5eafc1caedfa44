"""Self-attention over a packed batch, on backends that give the same values.

- ``packed`` hands every run of equally long texts to the fused kernel at once, so no padding exists.
- ``varlen`` hands it the whole batch, of whatever lengths. For GPUs.
- ``padded`` is the definition, softmax(QK'/sqrt(C) + mask)V on a padded batch: slow, obvious, the tests'
  reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from moembed.config import Strict
from moembed.machine import AUTO, has_amx, requested_backend, supported_backend
from moembed.model import sliding
from moembed.model.norm import NormSpec, make_norm
from moembed.model.packed_attention import in_float
from moembed.model.relative_bias import between
from moembed.model.rope import CosSin, RopeSpec, rotate
from moembed.packing import offsets, on_device


class AttentionSpec(Strict):
    """Self-attention of one layer.

    Attributes:
        num_kv_heads: heads of keys and values; each serves ``num_heads / num_kv_heads`` heads of queries in
            a row (Ainslie et al., arXiv 2305.13245).
        bias: of the projection to queries, keys and values; ``out_bias`` of the one back.
        qk_norm: of every head of queries and keys, before they are rotated; None: there is none.
        scale: what the products of queries and keys are multiplied by; None: ``head_size ** -0.5``.
        window: a token sees those at most so many positions away; None: all.
        causal: a token sees only itself and those before it.
        rope: rotary positions; None: there are none.
    """

    num_heads: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    bias: bool = True
    out_bias: bool = True
    qk_norm: NormSpec | None = None
    scale: float | None = Field(default=None, gt=0)
    window: int | None = Field(default=None, ge=0)
    causal: bool = False
    rope: RopeSpec | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> AttentionSpec:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.rope and self.head_size % 2:
            raise ValueError(f"heads of size {self.head_size} cannot be rotary: it is odd")
        return self


@dataclass(frozen=True, slots=True)
class AttentionMask:
    """Which tokens of its text a token sees, and what is added to their scores.

    ``bias_HN``: by distance, see `moembed.model.relative_bias`; None: nothing.
    """

    causal: bool = False
    window: int | None = None
    bias_HN: Tensor | None = field(default=None, compare=False)

    @property
    def is_plain(self) -> bool:
        """Every token sees all, and nothing is added."""
        return not self.causal and self.window is None and self.bias_HN is None

    def seen_SS(self, length: int, device: torch.device) -> Tensor | None:
        """True where the row sees the column; None where every token sees all."""
        return sliding.seen(range(length), range(length), self.causal, self.window, device)

    def added(self, length: int, states: Tensor) -> Tensor | None:
        """The mask of one text as the fused kernel takes it: `seen_SS`, or numbers to add ``(H, S, S)``."""
        seen_SS = self.seen_SS(length, states.device)
        if self.bias_HN is None:
            return seen_SS
        bias_HSS = between(self.bias_HN.to(states.dtype), length)
        return bias_HSS if seen_SS is None else bias_HSS.masked_fill(~seen_SS, -torch.inf)


class Attention(nn.Module):
    """Multi-head attention; one fused projection laid out ``[q | k | v]``, heads contiguous inside each."""

    def __init__(self, width: int, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        self.mask = AttentionMask(spec.causal, spec.window)
        self.qkv = nn.Linear(width, sum(self.heads) * spec.head_size, bias=spec.bias)
        self.out = nn.Linear(spec.num_heads * spec.head_size, width, bias=spec.out_bias)
        self.query_norm = make_norm(spec.head_size, spec.qk_norm) if spec.qk_norm else None
        self.key_norm = make_norm(spec.head_size, spec.qk_norm) if spec.qk_norm else None

    def forward(
        self,
        hidden_TD: Tensor,
        length_B: Sequence[int],
        cos_sin: CosSin | None = None,
        dropout: float = 0.0,
        backend: str = AUTO,
        bias_HN: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """``bias_HN``: added to the scores, by distance. ``causal``: a token sees only those before it, even
        if the spec shows it all. Rows behind the last text are padding."""
        # projections, and what is done to each head alone
        states_THC = self.qkv(hidden_TD).unflatten(-1, (sum(self.heads), self.spec.head_size))
        # the fused CPU kernel is slow in bf16: without AMX in both directions, with it backward
        wide = states_THC.device.type == "cpu" and (self.training or not has_amx())
        if wide and (cos_sin is not None or self.query_norm is not None):
            states_THC = states_THC.float()
        query_THC, key_THC, value_THC = states_THC.split(self.heads, dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            query_THC, key_THC = self.query_norm(query_THC), self.key_norm(key_THC)
        if cos_sin is not None:
            query_THC, key_THC = rotate(query_THC, *cos_sin), rotate(key_THC, *cos_sin)
        if (scale := self.spec.scale) is not None:  # the kernels divide by the root of the head size
            query_THC = query_THC * (scale * self.spec.head_size**0.5)
        if (shared := self.spec.num_heads // self.spec.num_kv_heads) > 1:
            key_THC, value_THC = (x.repeat_interleave(shared, dim=1) for x in (key_THC, value_THC))
        # attention proper
        mask = self.mask if bias_HN is None else replace(self.mask, bias_HN=bias_HN)
        mask = replace(mask, causal=True) if causal else mask
        states, name = (query_THC, key_THC, value_THC), _choose(backend, query_THC, mask, dropout)
        if wide and name == "packed" and mask.is_plain and dropout == 0:
            mixed_THC = in_float(*states, length_B)
        else:
            mixed_THC = _without_padding(BACKENDS[name], states, length_B, mask, dropout, wide)
        return self.out(mixed_THC.flatten(1).to(hidden_TD.dtype))


States = tuple[Tensor, Tensor, Tensor]  # queries, keys and values, each (T, H, C)
Backend = Callable[[States, Sequence[int], AttentionMask, float], Tensor]


def _without_padding(
    run: Backend, states: States, length_B: Sequence[int], mask: AttentionMask, dropout: float, wide: bool
) -> Tensor:
    """Run a backend on the rows of texts alone; rows behind the last text are zeros."""
    real = sum(length_B)
    padding = len(states[0]) - real
    if padding:
        states = (states[0][:real], states[1][:real], states[2][:real])
    if wide:
        states = (states[0].float(), states[1].float(), states[2].float())
    mixed_THC = run(states, length_B, mask, dropout)
    return F.pad(mixed_THC, (0, 0, 0, 0, 0, padding)) if padding else mixed_THC


def packed(states: States, length_B: Sequence[int], mask: AttentionMask, dropout: float) -> Tensor:
    """One fused call per run of equal lengths; texts in ``length_B`` stand shortest first."""
    runs = [(length, len(list(group))) for length, group in groupby(length_B)]
    sizes = [length * count for length, count in runs]
    split = [torch.split(states_THC, sizes) for states_THC in states]
    mixed = []
    for (length, count), *parts in zip(runs, *split, strict=True):
        query, key, value = (x.unflatten(0, (count, length)).transpose(1, 2) for x in parts)
        with torch.autocast(query.device.type, enabled=False):
            if mask.window and mask.bias_HN is None and sliding.pays(length, mask.window):
                attended = sliding.in_blocks(query, key, value, mask.causal, mask.window, dropout)
            else:
                added = mask.added(length, query)
                attended = F.scaled_dot_product_attention(query, key, value, added, dropout)
        mixed.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed)


def varlen(states: States, length_B: Sequence[int], mask: AttentionMask, dropout: float) -> Tensor:
    """One call of FlashAttention (Dao, arXiv 2307.08691), which reads where each text starts."""
    assert dropout == 0
    assert mask.is_plain
    start_B = on_device(offsets(length_B), states[0].device, torch.int32)
    longest = max(length_B)
    return _varlen_attn()(*states, start_B, start_B, longest, longest)


@cache
def _varlen_attn() -> Any:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before PyTorch 2.10
        return None
    return varlen_attn


def padded(states: States, length_B: Sequence[int], mask: AttentionMask, dropout: float) -> Tensor:
    """The same by definition: pad to the longest text, mask, softmax, unpad."""
    device = states[0].device
    place_S = torch.arange(max(length_B), device=device)
    real_BS = place_S < torch.tensor(length_B, device=device)[:, None]
    hidden_BHSS = ~real_BS[:, None, None, :]
    if mask.causal:
        hidden_BHSS = hidden_BHSS | (place_S[None, :] > place_S[:, None])
    if mask.window is not None:
        hidden_BHSS = hidden_BHSS | ((place_S[None, :] - place_S[:, None]).abs() > mask.window)

    def pad(states_THC: Tensor) -> Tensor:
        padded_BSHC = states_THC.new_zeros(*real_BS.shape, *states_THC.shape[1:])
        padded_BSHC[real_BS] = states_THC
        return padded_BSHC.transpose(1, 2)

    query, key, value = map(pad, states)
    score_BHSS = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask.bias_HN is not None:
        score_BHSS = score_BHSS + between(mask.bias_HN, len(place_S))
    # finite, for a row of padding may see nothing at all
    score_BHSS = score_BHSS.masked_fill(hidden_BHSS, torch.finfo(score_BHSS.dtype).min)
    weight_BHSS = F.dropout(score_BHSS.softmax(-1), dropout)
    return (weight_BHSS @ value).transpose(1, 2)[real_BS]


BACKENDS: dict[str, Backend] = {
    "packed": packed,
    "varlen": varlen,
    "padded": padded,
}


def _choose(wanted: str, query_THC: Tensor, mask: AttentionMask, dropout: float) -> str:
    """``wanted``, or for ``auto`` the backend ``varlen`` wherever it can run, else ``packed``."""
    name = requested_backend("attention_backend", wanted, BACKENDS)
    if name not in (None, "varlen"):
        return name
    reason = _unsupported_reason(query_THC, mask, dropout)
    if name is None:
        return "packed" if reason else "varlen"
    return supported_backend("attention_backend", name, reason, "packed")


def _unsupported_reason(query_THC: Tensor, mask: AttentionMask, dropout: float) -> str | None:
    """Why ``varlen`` cannot run on these queries, keys and values."""
    if query_THC.device.type != "cuda" or not torch.backends.cuda.is_flash_attention_available():
        return "needs FlashAttention and a CUDA device"
    if torch.cuda.get_device_capability(query_THC.device) < (8, 0):
        return "needs an Ampere GPU or a newer one"
    if query_THC.dtype not in (torch.bfloat16, torch.float16):
        return "needs bfloat16 or float16"
    if query_THC.shape[-1] % 8 or query_THC.shape[-1] > 256:
        return "needs heads of a multiple of 8 up to 256 channels"
    if dropout:
        return "does not support dropout"
    if not mask.is_plain:
        return "supports neither a window, nor a causal mask, nor a bias of the scores"
    return None if _varlen_attn() else "needs PyTorch 2.10"
