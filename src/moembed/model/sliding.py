"""Attention in a window, block by block of queries: a long text costs its length times the window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOWS = 4  # in a block of queries


def seen(
    queries: range, keys: range, causal: bool, window: int | None, device: torch.device
) -> Tensor | None:
    """True where the token at the place of a row sees that of a column; None where every token sees all."""
    behind, before = keys[-1] - queries[0], queries[-1] - keys[0]
    near = window is None or window >= max(behind, before)
    if near and not (causal and behind > 0):
        return None
    seen_QS = torch.ones(len(queries), len(keys), dtype=torch.bool, device=device)
    # the diagonals of the farthest key behind a query, and of the farthest before it
    start = queries[0] - keys[0]
    if (farthest := 0 if causal else window) is not None:
        seen_QS = seen_QS.tril_(start + farthest)
    return seen_QS.triu_(start - window) if window is not None else seen_QS


def pays(length: int, window: int | None) -> bool:
    """Whether a text makes three blocks or more."""
    return bool(window) and length > 2 * _WINDOWS * (window or 0)


def in_blocks(query: Tensor, key: Tensor, value: Tensor, causal: bool, window: int, dropout: float) -> Tensor:
    """Queries, keys and values ``(B, H, S, C)`` -> the same as attention under the mask of the whole text."""
    length, block = query.shape[2], _WINDOWS * window
    added: dict[tuple[int, int, int], Tensor | None] = {}  # the blocks inside a text have the same mask
    mixed = []
    for start in range(0, length, block):
        queries = range(start, min(start + block, length))
        behind = 0 if causal else window
        keys = range(max(0, start - window), min(length, queries[-1] + behind + 1))
        shape = (len(queries), len(keys), start - keys[0])
        if shape not in added:
            seen_QS = seen(queries, keys, causal, window, query.device)
            # numbers to add: the kernel would make them of true and false at every call
            low_QS = (
                None if seen_QS is None else query.new_zeros(shape[:2]).masked_fill_(~seen_QS, -torch.inf)
            )
            added[shape] = low_QS
        near = slice(keys.start, keys.stop)
        some_QC, key_SC, value_SC = query[:, :, start : queries.stop], key[:, :, near], value[:, :, near]
        mixed.append(F.scaled_dot_product_attention(some_QC, key_SC, value_SC, added[shape], dropout))
    return torch.cat(mixed, dim=2)
