"""An encoder some of whose matrices carry adapters, and the plain encoder that computes the same.

An adapter is a parametrization of PyTorch: reading ``module.weight`` gives the matrix with its adapter added,
so whatever reads matrices (kernels, experts, routers, packing) sees the adapted one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from moembed.model.encoder import Encoder, skeleton

_MARK = "parametrizations."


def adapted(encoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and merged value of every tensor that carries an adapter."""
    for name, module in encoder.named_modules():
        if is_parametrized(module):
            for tensor in module.parametrizations:
                yield f"{name}.{tensor}", getattr(module, tensor).detach()


def plain(encoder: Encoder) -> Encoder:
    """The encoder itself if it carries no adapter, else a twin with all of them merged: no gradient, and all
    other tensors shared."""
    merged = dict(adapted(encoder))
    if not merged:
        return encoder
    tensors = chain(encoder.named_parameters(), encoder.named_buffers())
    state = {name: tensor.detach() for name, tensor in tensors if _MARK not in name} | merged
    twin = skeleton(encoder.spec)
    twin.load_state_dict(state, assign=True)
    twin.requires_grad_(False)
    twin.attention_backend, twin.moe_backend = encoder.attention_backend, encoder.moe_backend
    return twin.train(encoder.training)


def load_plain(encoder: Encoder, state: Mapping[str, Tensor]) -> None:
    """Load the tensors of a plain encoder in place; those that carry an adapter stay what they are, for in
    ``state`` they are merged, and their adapter is kept apart."""
    merged = {name for name, _ in adapted(encoder)}
    found = {name: tensor for name, tensor in state.items() if name not in merged}
    missing, unexpected = encoder.load_state_dict(found, strict=not merged)
    wrong = [*unexpected, *(name for name in missing if _MARK not in name)]
    assert not wrong, wrong
