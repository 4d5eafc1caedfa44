"""The loss of guessing masked tokens, in memory that does not grow with the number of tokens guessed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LARGEST_SCORES = 2**27  # elements of the score matrix that exists at one time


def masked_lm_loss(
    state_TD: Tensor, target_T: Tensor, weight_VD: Tensor, bias_V: Tensor, largest: int = LARGEST_SCORES
) -> tuple[Tensor, Tensor]:
    """``sum_t -log softmax(W h_t + b)[target_t]`` over the guessed tokens, and how many were guessed right.

    Scores of a large vocabulary outweigh the model itself: beyond ``largest`` elements they are computed
    slice by slice, and once more in the backward pass, to the same sums.

    Args:
        state_TD: one state per guessed token.
        target_T: the right token ids.
        weight_VD: the word embeddings, tied.

    Source: Devlin et al., arXiv 1810.04805, section 3.1.
    """
    rows = max(1, largest // len(weight_VD))
    slices = list(zip(torch.split(state_TD, rows), torch.split(target_T, rows), strict=True))
    if len(slices) == 1:
        return _slice_loss(*slices[0], weight_VD, bias_V)
    losses, right = zip(
        *(checkpoint(_slice_loss, *part, weight_VD, bias_V, use_reentrant=False) for part in slices),
        strict=True,
    )
    return torch.stack(losses).sum(), torch.stack(right).sum()


def _slice_loss(
    state_TD: Tensor, target_T: Tensor, weight_VD: Tensor, bias_V: Tensor
) -> tuple[Tensor, Tensor]:
    score_TV = F.linear(state_TD, weight_VD, bias_V)
    loss = F.cross_entropy(score_TV.float(), target_T, reduction="sum")
    return loss, (score_TV.argmax(-1) == target_T).sum()
