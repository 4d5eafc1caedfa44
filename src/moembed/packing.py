"""Texts of different lengths laid end to end: a packed batch, and what follows from its lengths.

``pack`` lays rows end to end, shortest first, so that texts of equal length stand side by side and nothing is
ever computed on padding. The tensors are made on a device that the host does not wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from moembed.types import Batch


def pack(
    rows: Sequence[Sequence[int]],
    truncated: int = 0,
    prompt_tokens: Sequence[int] | None = None,
    types: Sequence[Sequence[int]] | None = None,
    tags: Sequence[int] | None = None,
) -> Batch:
    """Lay token rows end to end, shortest first (ties keep the caller's order).

    Args:
        truncated: for ``Batch.truncated``.
        prompt_tokens: how many tokens at the start of each row are those of a prompt.
        types: of the tokens of each row; None: all are of the first type.
        tags: the number of each row's tag.

    Returns:
        Batch with ``token_T`` int64, ``length_B`` ascending and ``restore_B`` int64.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    restore_B = torch.empty(len(rows), dtype=torch.long)
    restore_B[torch.tensor(order, dtype=torch.long)] = torch.arange(len(rows))
    return Batch(
        token_T=_joined(rows, order),
        length_B=tuple(len(rows[i]) for i in order),
        restore_B=restore_B,
        truncated=truncated,
        prompt_B=None if prompt_tokens is None else tuple(prompt_tokens[i] for i in order),
        type_T=None if types is None else _joined(types, order),
        tag_B=None if tags is None else tuple(tags[i] for i in order),
    )


def _joined(rows: Sequence[Sequence[int]], order: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.fromiter(chain.from_iterable(rows[i] for i in order), dtype=np.int64))


def token_budget(lengths: Sequence[int], max_tokens: int, max_texts: int | None = None) -> list[list[int]]:
    """Split texts into groups of at most ``max_tokens`` tokens and ``max_texts`` texts, by length.

    A text longer than the budget makes a group of its own. The groups hold every index once, longest texts
    first, so the largest allocation comes first and a memory shortage shows at the start.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    room = 0
    for i in order:
        if not groups or lengths[i] > room or len(groups[-1]) == max_texts:
            groups.append([])
            room = max_tokens
        groups[-1].append(i)
        room -= lengths[i]
    return groups


def even_budget(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split texts as ``token_budget`` does, into as many groups, but of about as many tokens each.

    A last group of a few tokens would cost as many calls as a full one.
    """
    total, longest = sum(lengths), max(lengths, default=0)
    count = -(-total // max_tokens)
    even = -(-total // count) + longest if count else max_tokens
    return token_budget(lengths, min(max_tokens, even))


def row_padding(rows: int) -> int:
    """How many rows to add so that products of a CPU meet few different numbers of rows.

    oneDNN builds a kernel for every number it has not met. The sum is one of 16 per octave, so that at most
    a sixteenth is added, and a multiple of 32.
    """
    step = max(32, 1 << max(rows - 1, 0).bit_length() >> 5)
    return -rows % step


def offsets(lengths: Sequence[int]) -> list[int]:
    """Where each text of a packed batch starts, and where the last one ends."""
    return [0, *accumulate(lengths)]


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
