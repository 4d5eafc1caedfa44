"""Token states of each text -> one vector per text, on packed batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moembed.packing import offsets, on_device, positions
from moembed.types import UserError


def mean(hidden_TD: Tensor, length_B: Sequence[int]) -> Tensor:
    """Mean over all tokens of the text, prompt and special tokens included."""
    return _reduce(hidden_TD, length_B, "mean")


def mean_by_root(hidden_TD: Tensor, length_B: Sequence[int]) -> Tensor:
    """Sum over all tokens, divided by the square root of their number."""
    length_B1 = on_device(length_B, hidden_TD.device)[:, None]
    return _reduce(hidden_TD, length_B, "sum") / length_B1.float().sqrt()


def maximum(hidden_TD: Tensor, length_B: Sequence[int]) -> Tensor:
    """Largest value of each coordinate over the tokens."""
    return _reduce(hidden_TD, length_B, "max")


def cls(hidden_TD: Tensor, length_B: Sequence[int]) -> Tensor:
    """State of the first token."""
    return hidden_TD[on_device(offsets(length_B)[:-1], hidden_TD.device)].float()


def last(hidden_TD: Tensor, length_B: Sequence[int]) -> Tensor:
    """State of the last token."""
    return hidden_TD[on_device(offsets(length_B)[1:], hidden_TD.device) - 1].float()


def weighted_mean(hidden_TD: Tensor, length_B: Sequence[int]) -> Tensor:
    """Mean with weights 1, 2, 3, ... from the first token to the last (Muennighoff, arXiv 2202.08904)."""
    weight_T1 = positions(length_B, hidden_TD.device)[:, None] + 1
    length_B1 = on_device(length_B, hidden_TD.device)[:, None]
    return _reduce(hidden_TD.float() * weight_T1, length_B, "sum") / (length_B1 * (length_B1 + 1) / 2)


def _reduce(hidden_TD: Tensor, length_B: Sequence[int], how: str) -> Tensor:
    lengths = on_device(length_B, hidden_TD.device)
    # unsafe: without the check that the lengths add up to the rows, which would wait for the device
    return torch.segment_reduce(hidden_TD.float(), how, lengths=lengths, unsafe=True)


# By the names of sentence-transformers.
POOLING: dict[str, Callable[[Tensor, Sequence[int]], Tensor]] = {
    "mean": mean,
    "cls": cls,
    "max": maximum,
    "lasttoken": last,
    "weightedmean": weighted_mean,
    "mean_sqrt_len_tokens": mean_by_root,
}


@dataclass(frozen=True)
class Pooling:
    """One way of pooling, or several whose vectors stand side by side: ``mean``, ``cls+max``.

    Raises:
        UserError: a name that ``POOLING`` lacks.
    """

    name: str = "mean"

    def __post_init__(self) -> None:
        if unknown := [mode for mode in self.modes if mode not in POOLING]:
            raise UserError(f"pooling {unknown[0]!r} is not supported (known: {', '.join(POOLING)})")

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(self.name.split("+"))

    def dim(self, width: int) -> int:
        """Coordinates of the pooled vector, of states ``width`` wide."""
        return width * len(self.modes)

    def __call__(self, hidden_TD: Tensor, length_B: Sequence[int]) -> Tensor:
        """Vectors ``(B, M)`` fp32 of packed states."""
        pooled = [POOLING[mode](hidden_TD, length_B) for mode in self.modes]
        return torch.cat(pooled, dim=-1) if len(pooled) > 1 else pooled[0]
