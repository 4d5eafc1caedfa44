"""Token states of each text -> one vector per text, on packed batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moembed.tokenizer import offsets


def mean(hidden_TD: Tensor, length_B: Sequence[int]) -> Tensor:
    """Mean over all tokens of the text, prompt and special tokens included."""
    return _reduce(hidden_TD, length_B, "mean")


def maximum(hidden_TD: Tensor, length_B: Sequence[int]) -> Tensor:
    """Largest value of each coordinate over the tokens."""
    return _reduce(hidden_TD, length_B, "max")


def cls(hidden_TD: Tensor, length_B: Sequence[int]) -> Tensor:
    """State of the first token."""
    return hidden_TD[offsets(length_B)[:-1]].float()


def last(hidden_TD: Tensor, length_B: Sequence[int]) -> Tensor:
    """State of the last token."""
    return hidden_TD[[end - 1 for end in offsets(length_B)[1:]]].float()


def weighted_mean(hidden_TD: Tensor, length_B: Sequence[int]) -> Tensor:
    """Mean with weights 1, 2, 3, ... from the first token to the last (Muennighoff, arXiv 2202.08904)."""
    position_T = torch.cat([torch.arange(1, length + 1) for length in length_B]).to(hidden_TD.device)
    total_B = torch.tensor([length * (length + 1) / 2 for length in length_B], device=hidden_TD.device)
    return _reduce(hidden_TD.float() * position_T[:, None], length_B, "sum") / total_B[:, None]


def _reduce(hidden_TD: Tensor, length_B: Sequence[int], how: str) -> Tensor:
    lengths = torch.tensor(length_B, device=hidden_TD.device)
    return torch.segment_reduce(hidden_TD.float(), how, lengths=lengths)


POOLING: dict[str, Callable[[Tensor, Sequence[int]], Tensor]] = {
    "mean": mean,
    "cls": cls,
    "max": maximum,
    "lasttoken": last,
    "weightedmean": weighted_mean,
}
