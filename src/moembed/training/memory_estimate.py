"""How much memory a training step takes: counted on the model itself, not looked up in a formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from moembed.types import Batch, Encoded

_SMALL, _LARGE = 128, 1024  # tokens of the two passes that are measured


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes. ``graph`` is what autograd keeps of the texts that have their graph in memory together.

    Not counted: the data, what the allocator keeps beyond that, and what lives for one operation.
    """

    weights: int
    gradients: int
    optimizer: int
    graph: int
    vectors: int
    graph_per_token: float
    graph_tokens: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.graph + self.vectors


def estimate(
    module: nn.Module, embed: Callable[[Batch], Encoded], largest: Batch, graph_tokens: int, vectors: int
) -> MemoryEstimate:
    """What a step of AdamW with ``graph_tokens`` tokens in memory takes.

    Two forward passes over the first texts of ``largest`` are made, and the storages that autograd keeps are
    counted: their sizes give the bytes per token and those that do not grow with tokens (weights in another
    precision).

    Args:
        module: holds all parameters.
        embed: the forward pass of training, in its precision.
        largest: a chunk of a batch.
        vectors: bytes of the vectors of a batch, their gradients and a block of scores.
    """
    parameters = list(module.parameters())
    weights = sum(tensor.nbytes for tensor in [*parameters, *module.buffers()])
    learned = sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)
    small, large = first_texts(largest, _SMALL), first_texts(largest, _LARGE)
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    few, many = (graph_bytes(embed, batch, known) for batch in (small, large))
    tokens = len(large.token_T) - len(small.token_T)
    per_token = (many - few) / tokens if tokens else many / len(large.token_T)
    fixed = max(0.0, few - per_token * len(small.token_T))
    graph = round(fixed + per_token * graph_tokens)
    return MemoryEstimate(weights, learned, 2 * learned, graph, vectors, per_token, graph_tokens)


def graph_bytes(embed: Callable[[Batch], Encoded], batch: Batch, known: set[int]) -> int:
    """Bytes of all storages that autograd keeps of a forward pass; ``known``: addresses not to be counted."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encoded = embed(batch)  # alive until all is counted: no address is used twice
        found = sum(size for address, size in sizes.items() if address not in known)
        del encoded
    return found


def first_texts(batch: Batch, tokens: int) -> Batch:
    """The first texts of a batch, at least one, of at most about so many tokens."""
    count, total = 0, 0
    while count < len(batch.length_B) and (not count or total + batch.length_B[count] <= tokens):
        total += batch.length_B[count]
        count += 1
    return replace(
        batch,
        token_T=batch.token_T[:total],
        length_B=batch.length_B[:count],
        restore_B=torch.arange(count),
        prompt_B=None if batch.prompt_B is None else batch.prompt_B[:count],
        type_T=None if batch.type_T is None else batch.type_T[:total],
        tag_B=None if batch.tag_B is None else batch.tag_B[:count],
    )
