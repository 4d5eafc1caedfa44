"""Packed batch -> unit vectors, one of every text or one of every token: encoder, pooling, head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.model.encoder import Encoder
from moembed.model.head import Head
from moembed.model.pooling import Pooling
from moembed.packing import offsets
from moembed.types import Batch, Encoded, UserError


def unit_vectors(
    encoder: Encoder, pooling: Pooling, head: Head, batch: Batch, depths: Sequence[int] | None = None
) -> Encoded:
    """Unit vectors ``(B, M)`` fp32 in the caller's order, for every depth asked for; default: the last.

    A text without a single token has the vector of zeros. With pooling ``tokens`` the rows are the tokens of
    one text after the other, ``PoolingConfig.vectors_of`` each.

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
        zeros_BM = torch.zeros(0 if pooling.config.per_token else empty, dim, device=batch.token_T.device)
        return Encoded(dict.fromkeys(depths or [encoder.spec.num_layers], zeros_BM))
    prompt_B = batch.prompt_B[empty:] if batch.prompt_B else None
    tag_B = None if batch.tag_B is None else batch.tag_B[empty:]
    wanted = list(depths) if depths is not None else [encoder.spec.num_layers]
    read = pooling.depths(wanted)
    hidden, router = encoder(batch.token_T, length_B, read, type_T=batch.type_T, tag_B=tag_B)

    row_T = _token_rows(batch, pooling) if pooling.config.per_token else None

    def vectors(depth: int) -> Tensor:
        layers = [hidden[i] for i in range(1, depth + 1)] if pooling.config.all_layers else []
        vector_BM = head(pooling(hidden[depth], length_B, prompt_B, layers))
        if row_T is not None:
            return vector_BM[row_T]
        if empty:
            vector_BM = F.pad(vector_BM, (0, 0, empty, 0))
        return vector_BM[batch.restore_B]

    return Encoded({depth: vectors(depth) for depth in hidden if depth in wanted}, router)


def _token_rows(batch: Batch, pooling: Pooling) -> Tensor:
    """Where the vectors of the tokens stand in the packed order, those of the caller's first text first."""
    prompt_B = batch.prompt_B or [None] * len(batch.length_B)
    pairs = zip(batch.length_B, prompt_B, strict=True)
    kept_B = [pooling.config.vectors_of(length, prompt) for length, prompt in pairs]
    start_B, device = offsets(kept_B), batch.token_T.device
    order = batch.restore_B.tolist()
    rows = [torch.arange(start_B[place], start_B[place + 1]) for place in order]
    return torch.cat(rows).to(device, non_blocking=True)
