"""GradCache: the gradient of a large contrastive batch in the memory of one chunk.

Pass one embeds every chunk; the last ones, as many as there is memory for, keep their graphs. The loss is
computed once on all vectors, whose gradients are the cache. Pass two back-propagates ``<vector, cached
gradient>`` through every chunk: first through those that kept their graph, which makes room, then through the
others, each embedded again under the random state of its first time. The router terms stay exact: pass one
sums the expert counts of the whole batch, pass two adds each chunk's share (see `moembed.losses.balance`).
Source: Gao et al., arXiv 2101.06983, who keep no graph.

Several processes share a batch: vectors, their gradients and the counts are summed between the passes (see
`moembed.training.parallel`); those of the parameters are summed by ``embed``'s module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from moembed.training.memory import trim_heap
from moembed.training.monitors.routing import Observe, unobserved
from moembed.training.parallel import ALONE, World
from moembed.types import Batch, Encoded, RouterStats

Embed = Callable[[Batch], Encoded]
Loss = Callable[[dict[int, Tensor]], Tensor]
RouterLoss = Callable[[Sequence[RouterStats], Sequence[RouterStats]], Tensor]
Hold = Callable[[], AbstractContextManager[object]]


@dataclass(slots=True)
class Chunks:
    """The texts of a step that this process embeds.

    ``row_CB[c][i]`` is the row of text i of chunk c among the ``rows`` vectors of the whole step. The last
    ``kept`` chunks are embedded once: their graphs are in memory together.
    """

    batches: list[Batch]
    row_CB: list[Tensor]
    rows: int
    kept: int = 1


@dataclass(slots=True)
class BatchLoss:
    """What one step costs: the loss terms and the router statistics of the whole batch."""

    contrastive: float
    router: float
    stats: list[RouterStats]


def backward(
    embed: Embed,
    chunks: Chunks,
    loss: Loss,
    router_loss: RouterLoss | None,
    world: World = ALONE,
    observe: Observe = unobserved,
    hold: Hold = nullcontext,
) -> BatchLoss:
    """Add to the parameters' gradients the gradient of ``loss(all vectors) + router_loss(all tokens)``.

    Args:
        embed: the model; called once for chunks that keep their graph and twice for the others.
        loss: of ``{depth: vector_BM}``, rows as in ``chunks``; with several processes, this one's share.
        router_loss: of the statistics of some tokens and of all tokens; None for dense models.
        observe: entered around the first embedding of each chunk.
        hold: entered around every forward with a graph and its backward, but the last: with several
            processes, only that one sums the gradients of the parameters.
    """
    # ---- pass one: all vectors, most without a graph
    count = len(chunks.batches)
    graphs = _graphs(chunks, world)
    vectors: dict[int, Tensor] = {}
    states, parts = [], []
    kept: dict[int, Encoded] = {}
    for number, (batch, row_B) in enumerate(zip(chunks.batches, chunks.row_CB, strict=True)):
        states.append(_random_state())
        together = nullcontext() if count == 1 else hold()
        with torch.set_grad_enabled(number in graphs), observe(number), together:
            encoded = embed(batch)
        for depth, vector_BM in encoded.by_depth.items():
            if depth not in vectors:
                vectors[depth] = vector_BM.new_zeros(chunks.rows, vector_BM.shape[1])
            vectors[depth][row_B] = vector_BM.detach()
        parts.append([part.detach() for part in encoded.router])
        if number in graphs:
            kept[number] = encoded
        trim_heap(encoded.vector_BM.device.type)
        del encoded
    after = _random_state()
    total = world.sum_stats([_sum(layer) for layer in zip(*parts, strict=True)])

    # ---- the loss on all vectors, and its gradients at them
    contrastive, cached = _loss_and_gradients(vectors, loss, world)
    vectors.clear()  # from here on, their gradients are enough

    # ---- pass two: back through each chunk, those with a graph first
    order = [*graphs, *(number for number in range(count) if number not in graphs)]
    for number in order:
        if number not in kept:
            _set_random_state(states[number])
        with nullcontext() if number == order[-1] else hold():
            encoded = kept.pop(number) if number in kept else embed(chunks.batches[number])
            surrogate = _router(router_loss, encoded.router, total)
            for depth, gradient_BM in cached.items():
                surrogate = surrogate + (encoded.by_depth[depth] * gradient_BM[chunks.row_CB[number]]).sum()
            torch.autograd.backward(surrogate)
        trim_heap(encoded.vector_BM.device.type)
    _set_random_state(after)
    return BatchLoss(contrastive, _router(router_loss, total, total).item(), total)


def _graphs(chunks: Chunks, world: World) -> range:
    """Which chunks keep their graph. Several processes sum gradients in the backward pass that follows the
    forward pass last made, so the last of several chunks is embedded again there."""
    count = len(chunks.batches)
    kept = min(chunks.kept, count)
    if world.size > 1 and 1 < kept == count:
        kept -= 1
    return range(count - kept, count)


def _loss_and_gradients(
    vectors: dict[int, Tensor], loss: Loss, world: World
) -> tuple[float, dict[int, Tensor]]:
    """The loss on the vectors of all processes, and its gradient at them by depth, where it has one."""
    for vector_BM in vectors.values():
        world.sum(vector_BM).requires_grad_()
    share = loss(vectors)
    torch.autograd.backward(share)
    gradients = {depth: world.sum(leaf.grad) for depth, leaf in vectors.items() if leaf.grad is not None}
    return world.sum(share.detach()).item(), gradients


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
