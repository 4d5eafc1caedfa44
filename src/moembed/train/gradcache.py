"""GradCache: the gradient of a large contrastive batch in the memory of one chunk.

Pass one embeds every chunk without a graph. The loss is computed once on all vectors, whose gradients are the
cache. Pass two embeds every chunk again under the same random state and back-propagates ``<vector, cached
gradient>``. The router terms stay exact: pass one sums the expert counts of the whole batch, pass two adds
each chunk's share (see `moembed.losses.balance`). Source: Gao et al., arXiv 2101.06983.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moembed.types import Batch, Encoded, RouterStats

Embed = Callable[[Batch], Encoded]
Loss = Callable[[dict[int, Tensor]], Tensor]
RouterLoss = Callable[[Sequence[RouterStats], Sequence[RouterStats]], Tensor]


@dataclass(slots=True)
class Terms:
    """What one step cost, before the optimiser moves: loss terms and router statistics of the whole batch."""

    contrastive: float
    router: float
    stats: list[RouterStats]


def backward(embed: Embed, chunks: Sequence[Batch], loss: Loss, router_loss: RouterLoss | None) -> Terms:
    """Accumulate in the parameters the gradient of ``loss(all vectors) + router_loss(all tokens)``.

    Args:
        embed: the model; called twice per chunk unless there is only one.
        chunks: the texts of the step; the loss sees their vectors in this order.
        loss: of ``{depth: vector_BM}``.
        router_loss: of the statistics of some tokens and of all tokens; None for dense models.
    """
    if len(chunks) == 1:
        encoded = embed(chunks[0])
        contrastive = loss(encoded.by_depth)
        router = _router(router_loss, encoded.router, encoded.router)
        torch.autograd.backward(contrastive + router)
        return Terms(contrastive.item(), router.item(), [part.detach() for part in encoded.router])

    random_states, first = [], []
    with torch.no_grad():
        for chunk in chunks:
            random_states.append(_random_state())
            first.append(embed(chunk))
    after = _random_state()
    total = [_sum(parts) for parts in zip(*(encoded.router for encoded in first), strict=True)]
    leaves = {
        depth: torch.cat([encoded.by_depth[depth] for encoded in first]).requires_grad_()
        for depth in first[0].by_depth
    }
    contrastive = loss(leaves)
    torch.autograd.backward(contrastive)

    sizes = [len(chunk.length_B) for chunk in chunks]
    cached = {depth: torch.split(leaf.grad, sizes) for depth, leaf in leaves.items() if leaf.grad is not None}
    for i, chunk in enumerate(chunks):
        _set_random_state(random_states[i])
        encoded = embed(chunk)
        surrogate = _router(router_loss, encoded.router, total)
        for depth, gradients in cached.items():
            surrogate = surrogate + (encoded.by_depth[depth] * gradients[i]).sum()
        torch.autograd.backward(surrogate)
    _set_random_state(after)
    router = _router(router_loss, total, total)
    return Terms(contrastive.item(), router.item(), total)


def _router(
    router_loss: RouterLoss | None, stats: Sequence[RouterStats], total: Sequence[RouterStats]
) -> Tensor:
    return router_loss(stats, total) if router_loss and stats else torch.zeros(())


def _sum(parts: Sequence[RouterStats]) -> RouterStats:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _random_state() -> tuple[Tensor, Tensor | None]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return torch.get_rng_state(), cuda


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
