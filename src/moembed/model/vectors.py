"""Packed batch -> unit vectors: encoder, pooling, head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.model.encoder import Encoder
from moembed.model.head import Head
from moembed.model.pooling import Pooling
from moembed.types import Batch, Encoded, UserError


def unit_vectors(
    encoder: Encoder, pooling: Pooling, head: Head, batch: Batch, depths: Sequence[int] | None = None
) -> Encoded:
    """Unit vectors ``(B, M)`` fp32 in the caller's order, for every depth asked for; default: the last.

    A text without a single token has the vector of zeros.

    Raises:
        UserError: the model leaves prompts out of pooling, and the batch does not say how long they are; it
            routes by tags, and the batch has none.
    """
    if not pooling.config.include_prompt and batch.prompt_B is None:
        raise UserError(
            "this model leaves the prompt out of pooling (include_prompt false), and nothing says how many "
            "tokens the prompts of these texts have: pass prompt_tokens"
        )
    empty = batch.length_B.count(0)  # the shortest texts stand first
    length_B = batch.length_B[empty:]
    if batch.length_B and not length_B:
        dim = head.dim(pooling.dim)
        zeros_BM = torch.zeros(empty, dim, device=batch.token_T.device)
        return Encoded(dict.fromkeys(depths or [encoder.spec.num_layers], zeros_BM))
    prompt_B = batch.prompt_B[empty:] if batch.prompt_B else None
    tag_B = None if batch.tag_B is None else batch.tag_B[empty:]
    wanted = list(depths) if depths is not None else [encoder.spec.num_layers]
    read = pooling.depths(wanted)
    hidden, router = encoder(batch.token_T, length_B, read, type_T=batch.type_T, tag_B=tag_B)

    def vectors(depth: int) -> Tensor:
        layers = [hidden[i] for i in range(1, depth + 1)] if pooling.config.all_layers else []
        vector_BM = head(pooling(hidden[depth], length_B, prompt_B, layers))
        if empty:
            vector_BM = F.pad(vector_BM, (0, 0, empty, 0))
        return vector_BM[batch.restore_B]

    return Encoded({depth: vectors(depth) for depth in hidden if depth in wanted}, router)
