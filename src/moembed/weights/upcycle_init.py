"""How experts start: one entry of ``INITS`` for each ``UpcycleConfig.init``.

Each entry changes the copies of a dense block in place. ``copy`` keeps them; ``noise`` and ``drop`` touch a
share of the hidden units of every expert, other ones in each; ``cluster`` fits every expert to the states
that its router will send it.

What was found where: drop is Nakamura et al., arXiv 2502.19261, who draw the new values of each matrix from a
normal distribution with the mean and standard deviation of those they replace. Their published code chooses
other units for each matrix of an expert; here a unit is new in all of them, as their text has it. Its noise
baseline adds values of standard deviation 0.02 to half of the units. For clusters see
`moembed.weights.upcycle_clusters`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moembed.moe.ffn import FeedForwardSpec
from moembed.weights.upcycle_clusters import fit_to_clusters
from moembed.weights.upcycle_config import UpcycleConfig


@dataclass(frozen=True)
class Start:
    """What an entry of ``INITS`` works on, in one layer.

    Attributes:
        made: the tensors of the layer with experts, by name; changed in place.
        generator: of the random choices.
        states_ND: states that the dense block met, of ``cluster`` alone; else without rows.
    """

    options: UpcycleConfig
    ffn: FeedForwardSpec
    made: dict[str, Tensor]
    generator: torch.Generator
    states_ND: Tensor


def copy(start: Start) -> None:
    """Every expert is the dense block."""


def noise(start: Start) -> None:
    """``w + noise_std * normal`` at a share of the hidden units."""
    for part in _chosen_units(start):
        _write(part, part.values + start.options.noise_std * _normal(part.values, start.generator))


def drop(start: Start) -> None:
    """``mean(w) + std(w) * normal`` in the place of a share of the hidden units."""
    for part in _chosen_units(start):
        std = part.values.std() if part.values.numel() > 1 else part.values.abs().mean()
        _write(part, part.values.mean() + std * _normal(part.values, start.generator))


def cluster(start: Start) -> None:
    """Experts and router by clusters of the states."""
    options = start.options
    fit_to_clusters(start.made, start.ffn, start.states_ND, options.rank, start.generator)


INITS: dict[str, Callable[[Start], None]] = {"copy": copy, "noise": noise, "drop": drop, "cluster": cluster}


@dataclass(frozen=True)
class _Units:
    """Some hidden units of one tensor of an expert."""

    tensor: Tensor  # of the expert alone: a view
    axis: int
    units: Tensor

    @property
    def values(self) -> Tensor:
        return self.tensor.index_select(self.axis, self.units)


def _chosen_units(start: Start) -> Iterator[_Units]:
    """For every expert a share of its hidden units, at least one unless 0, in its tensors that have any."""
    share = start.options.share
    count = max(1 if share else 0, round(share * start.ffn.width))
    if not count:
        return
    axes = {"up_EFD": 0, "gate_EFD": 0, "up_bias_EF": 0, "gate_bias_EF": 0, "down_EDF": 1}
    for expert in range(start.options.num_experts):
        units = torch.randperm(start.ffn.width, generator=start.generator)[:count]
        for name, axis in axes.items():
            if name in start.made:
                yield _Units(start.made[name][expert], axis, units)


def _write(part: _Units, values: Tensor) -> None:
    part.tensor.index_copy_(part.axis, part.units, values.to(part.tensor.dtype))


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)
