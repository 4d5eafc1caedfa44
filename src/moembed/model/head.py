"""From the pooled vector to the embedding: linear layers or experts, if the model has any, and length 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.model.expert_head import ExpertHead
from moembed.model.named import NamedTensors
from moembed.types import UserError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda vector_BM: vector_BM,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}


@dataclass(frozen=True)
class Normalize:
    """``x / |x|``; zeros stay zeros."""


@dataclass(frozen=True)
class Dense:
    """``y = activation(W x + b)``, and ``+ x`` or ``+ R x`` with a residual, R where the widths differ."""

    in_dim: int
    out_dim: int
    bias: bool = True
    activation: str = "tanh"
    residual: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise UserError(
                f"activation {self.activation!r} of a dense layer is not supported (known: {known})"
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of the layer, by the names of sentence-transformers."""
        shapes: dict[str, tuple[int, ...]] = {"linear.weight": (self.out_dim, self.in_dim)}
        if self.bias:
            shapes["linear.bias"] = (self.out_dim,)
        if self.residual and self.in_dim != self.out_dim:
            shapes["residual.weight"] = (self.out_dim, self.in_dim)
        return shapes


Step = Dense | ExpertHead | Normalize


_NAMES = {Dense: "dense layer", ExpertHead: "block of experts"}


@dataclass(frozen=True)
class HeadConfig:
    """The steps in their order; the last one always normalises.

    Raises:
        UserError: a head that ends otherwise, or layers that do not fit one behind the other.
    """

    steps: tuple[Step, ...] = (Normalize(),)

    def __post_init__(self) -> None:
        if not self.steps or not isinstance(self.steps[-1], Normalize):
            raise UserError("the last step of a head must be Normalize: an embedding has length 1")
        for one, next_ in pairwise(self.layers):
            if one.out_dim != next_.in_dim:
                raise UserError(
                    f"a {_NAMES[type(one)]} of {one.out_dim} outputs stands before a "
                    f"{_NAMES[type(next_)]} of {next_.in_dim} inputs"
                )

    @property
    def layers(self) -> list[Dense | ExpertHead]:
        """The steps that have tensors."""
        return [step for step in self.steps if not isinstance(step, Normalize)]

    @property
    def dense(self) -> list[Dense]:
        return [step for step in self.steps if isinstance(step, Dense)]

    def dim(self, pooled: int) -> int:
        """Coordinates of the embedding, of pooled vectors of so many."""
        return self.layers[-1].out_dim if self.layers else pooled

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All tensors: ``{step}.{name}``."""
        return {
            f"{i}.{name}": shape
            for i, step in enumerate(self.steps)
            if not isinstance(step, Normalize)
            for name, shape in step.shapes().items()
        }

    def num_parameters(self, active: bool = False) -> int:
        """All, or those that one text can touch."""
        idle = sum(step.idle_parameters() for step in self.steps if isinstance(step, ExpertHead))
        return sum(prod(shape) for shape in self.shapes().values()) - (idle if active else 0)


class Head(NamedTensors):
    """The steps of a config on pooled vectors ``(B, M)``, in fp32.

    Args:
        config: the steps.
        state: their tensors by the names of ``HeadConfig.shapes``, taken over without copying.
    """

    def __init__(self, config: HeadConfig, state: dict[str, Tensor]) -> None:
        super().__init__(config.shapes(), state)
        self.config = config

    def dim(self, pooled: int) -> int:
        """See ``HeadConfig.dim``."""
        return self.config.dim(pooled)

    def facts(self) -> list[str]:
        """What tells one head from another; nothing of one that normalises alone."""
        return [repr(self.config), self.digest()] if self.config.layers else []

    def forward(self, vector_BM: Tensor) -> Tensor:
        for i, step in enumerate(self.config.steps):
            if isinstance(step, Dense):
                vector_BM = self._dense(i, step, vector_BM)
            elif isinstance(step, ExpertHead):
                # a model in training embeds texts for an evaluation too, and those without noise
                noisy = self.training and not torch.is_inference_mode_enabled()
                vector_BM = step.forward(partial(self._tensor_of, i), vector_BM, noisy)
            else:
                vector_BM = F.normalize(vector_BM, dim=-1)
        return vector_BM

    def _tensor_of(self, i: int, name: str) -> Tensor:
        return self.tensor(f"{i}.{name}")

    def _dense(self, i: int, step: Dense, vector_BM: Tensor) -> Tensor:
        def tensor(name: str) -> Tensor | None:
            return self.tensor(f"{i}.{name}").float() if name in step.shapes() else None

        weight = tensor("linear.weight")
        assert weight is not None
        output_BM = ACTIVATIONS[step.activation](F.linear(vector_BM, weight, tensor("linear.bias")))
        if not step.residual:
            return output_BM
        across = tensor("residual.weight")
        return output_BM + (vector_BM if across is None else F.linear(vector_BM, across))
