"""What follows from the lengths of packed texts, computed on a device that the host does not wait for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moembed.tokenizer import offsets


def on_device(value_B: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Integers as a tensor. A copy that blocks would wait for all that the device was told to do before."""
    return torch.tensor(value_B, dtype=dtype).to(device, non_blocking=True)


def spread(value_B: Tensor, length_B: Sequence[int]) -> Tensor:
    """Each text's value at all of its tokens: ``(T,)``."""
    repeats = on_device(length_B, value_B.device)
    return torch.repeat_interleave(value_B, repeats, output_size=sum(length_B))


def positions(length_B: Sequence[int], device: torch.device) -> Tensor:
    """The place of every token in its text, counted from 0: ``(T,)``."""
    start_B = on_device(offsets(length_B)[:-1], device)
    return torch.arange(sum(length_B), device=device) - spread(start_B, length_B)
