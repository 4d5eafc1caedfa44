"""Router losses from the statistics of the MoE layers.

Each takes the statistics of the tokens at hand and the ``total`` over all chunks and processes of the step,
and returns the share of these tokens: shares add up to the loss of the whole batch, value and gradient,
because the counts carry no gradient and the probabilities enter linearly. Padding is never routed, so it is
never counted. Layers whose router does not learn (a tag, a hash) have no share in a loss: there is nothing to
balance. Coefficients belong to the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from moembed.types import RouterStats


def balance_loss(stats: Sequence[RouterStats], total: Sequence[RouterStats]) -> Tensor:
    """``mean over layers of E * sum_e f_e * P_e``: 1 at perfect balance, E when one expert takes all.

    f_e is expert e's share of all routed pairs, P_e the mean router probability of e over all tokens.
    Source: Fedus et al., arXiv 2101.03961, eq. 4, averaged over layers as in MegaBlocks.
    """
    return _mean(
        len(part.prob_E) * (whole.load_E * part.prob_E).sum() / whole.tokens
        for part, whole in _learned(stats, total)
    )


def z_loss(stats: Sequence[RouterStats], total: Sequence[RouterStats]) -> Tensor:
    """``mean over layers and tokens of logsumexp(logits)^2``: keeps router logits small.

    Source: Zoph et al., arXiv 2202.08906, eq. 5.
    """
    return _mean(part.z / whole.tokens for part, whole in _learned(stats, total))


def corrected_bias(bias_E: Tensor, load_E: Tensor, rate: float) -> Tensor:
    """The bias of the choice of experts one step on: ``b_e + rate * sign(1/E - f_e)``.

    Source: Wang et al., arXiv 2408.15664, algorithm 1 (balance without a loss).
    """
    return bias_E + rate * (1 / len(load_E) - load_E).sign()


def _learned(
    stats: Sequence[RouterStats], total: Sequence[RouterStats]
) -> list[tuple[RouterStats, RouterStats]]:
    return [(part, whole) for part, whole in zip(stats, total, strict=True) if part.learned]


def _mean(terms: Iterable[Tensor]) -> Tensor:
    """Of no terms: 0."""
    found = list(terms)
    return torch.stack(found).mean() if found else torch.zeros(())
