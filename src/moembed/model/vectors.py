"""Packed batch -> unit vectors: encoder, pooling, L2 normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.model.encoder import Encoder
from moembed.model.pooling import POOLING
from moembed.types import Batch, Encoded


def unit_vectors(
    encoder: Encoder, pooling: str, batch: Batch, depths: Sequence[int] | None = None
) -> Encoded:
    """Unit vectors ``(B, M)`` fp32 in the caller's order, for every depth asked for; default: the last.

    A text without a single token has the vector of zeros.
    """
    empty = batch.length_B.count(0)  # the shortest texts stand first
    length_B = batch.length_B[empty:]
    if batch.length_B and not length_B:
        zeros_BM = torch.zeros(empty, encoder.spec.width, device=batch.token_T.device)
        return Encoded(dict.fromkeys(depths or [encoder.spec.num_layers], zeros_BM))
    hidden, router = encoder(batch.token_T, length_B, depths)
    pool = POOLING[pooling]

    def vectors(states_TD: Tensor) -> Tensor:
        vector_BM = F.normalize(pool(states_TD, length_B), dim=-1)
        if empty:
            vector_BM = F.pad(vector_BM, (0, 0, empty, 0))
        return vector_BM[batch.restore_B]

    return Encoded({depth: vectors(states_TD) for depth, states_TD in hidden.items()}, router)
