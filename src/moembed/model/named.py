"""A part of a model whose tensors go by names with dots: pooling, and the head behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class NamedTensors(nn.Module):
    """Parameters under names such as ``0.linear.weight``; a module may not have dots in its own.

    Args:
        names: of all tensors, in their order.
        state: the tensors, taken over without copying.
    """

    def __init__(self, names: Iterable[str], state: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = tuple(names)
        for name in self.names:
            self.register_parameter(_flat(name), nn.Parameter(state[name]))

    def tensor(self, name: str) -> Tensor:
        """The parameter of this name."""
        found: Tensor = getattr(self, _flat(name))
        return found

    def state(self) -> dict[str, Tensor]:
        """The tensors by their names."""
        return {name: self.tensor(name).detach() for name in self.names}

    def load(self, state: dict[str, Tensor]) -> None:
        """Copy values into the parameters."""
        with torch.no_grad():
            for name in self.names:
                self.tensor(name).copy_(state[name])

    def digest(self) -> str:
        """A hash of the values, rounded to bf16."""
        digest = hashlib.sha256()
        for tensor in self.state().values():
            digest.update(tensor.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _flat(name: str) -> str:
    return "step" + name.replace(".", "_")
