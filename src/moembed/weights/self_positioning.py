"""Self Positioning: a place between models, found by the loss on a few given pairs.

Source: Li et al., arXiv 2410.15035, by its abstract: stochastic gradient descent in the interpolation space
of task vectors. We did not have its formulas; that the weights are a softmax, and that the best of the places
found is kept, are choices of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moembed.weights.merge import State, arithmetic, average

# loss of a model on the batch of a step and its gradient by name; None: on held-out pairs, without a gradient
Probe = Callable[[State, int | None], tuple[float, State]]


@dataclass(frozen=True, slots=True)
class Position:
    """Where the merged model lies.

    Attributes:
        weights: of each model, positive, of sum 1.
        scale: of the differences from the base; 1 where there is no base.
        loss: of the held-out pairs there.
        others: the same of the mean of all models, and of each model: none is below ``loss``.
        learned: whether it was found by descent; False: one of ``others`` was the best.
    """

    weights: list[float]
    scale: float
    loss: float
    others: dict[str, float]
    learned: bool


def place(
    states: Sequence[State], weights: Sequence[float], scale: float, base: State | None
) -> dict[str, Tensor]:
    """``theta_0 + s * sum_i w_i (theta_i - theta_0)``, or ``sum_i w_i theta_i`` without a base."""
    return average(states, weights) if base is None else arithmetic(states, weights, base, scale)


def self_position(
    states: Sequence[State], base: State | None, probe: Probe, steps: int = 30, rate: float = 0.2
) -> Position:
    """Descend in ``w = softmax(a)`` and, with a base, in ``log s``, from the mean of all models on.

    The gradient at a weight is ``<dL/dtheta, theta_i>`` (less theta_0), so a step takes one backward pass
    through one model. Returned is the place of the lowest held-out loss: the last one, the mean, or a
    single model.

    Args:
        probe: see ``Probe``; step numbers count from 0.
        rate: of Adam.
    """
    logit_I = torch.zeros(len(states), requires_grad=True)
    log_scale = torch.zeros((), requires_grad=True)
    moved = [logit_I] if base is None else [logit_I, log_scale]
    optimiser = torch.optim.Adam(moved, lr=rate)
    for step in range(steps):
        weight_I, scale = logit_I.softmax(0), log_scale.exp()
        _, gradient = probe(place(states, weight_I.tolist(), float(scale.detach()), base), step)
        along_I = torch.tensor([_along(gradient, state, base) for state in states])
        optimiser.zero_grad()
        torch.autograd.backward(scale * (weight_I * along_I).sum())  # its gradient is that of the loss
        optimiser.step()

    def held_out(weights: Sequence[float], scale: float) -> float:
        return probe(place(states, weights, scale, base), None)[0]

    count = len(states)
    ends = {"mean": [1 / count] * count}
    ends |= {f"model {i + 1}": [float(i == k) for k in range(count)] for i in range(count)}
    others = {name: held_out(weights, 1.0) for name, weights in ends.items()}
    weights, size = logit_I.softmax(0).tolist(), float(log_scale.detach().exp())
    found = held_out(weights, size)
    best = min(others, key=lambda name: others[name])
    if found <= others[best]:
        return Position(weights, size, found, others, True)
    return Position(ends[best], 1.0, others[best], others, False)


def _along(gradient: State, state: State, base: State | None) -> float:
    """``<gradient, theta - theta_0>``."""
    total = 0.0
    for name, slope in gradient.items():
        direction = state[name].float() if base is None else state[name].float() - base[name].float()
        total += float((slope.double() * direction.double()).sum())
    return total
