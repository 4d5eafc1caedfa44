"""Models of one form -> one model: average, task arithmetic, TIES and slerp as functions of their tensors.

All are written as a first model plus differences, so that a model merged with itself is itself, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moembed.types import UserError

State = Mapping[str, Tensor]
_PARALLEL = 1e-4  # radians: below, an arc is a line


def average(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """``sum_i w_i theta_i``, the weights made to sum to 1.

    Source: Wortsman et al., *Model soups*, arXiv 2203.05482.
    """
    share = normalised(weights)
    return {
        name: _summed(first, [states[i][name] for i in range(1, len(states))], share[1:])
        for name, first in states[0].items()
    }


def arithmetic(
    states: Sequence[State], weights: Sequence[float], base: State, scale: float = 1.0
) -> dict[str, Tensor]:
    """``theta_0 + s * sum_i w_i (theta_i - theta_0)`` of a common base theta_0; the weights stay as given.

    Source: Ilharco et al., *Editing models with task arithmetic*, arXiv 2212.04089.
    """
    factors = [scale * weight for weight in weights]
    return {name: _summed(start, [state[name] for state in states], factors) for name, start in base.items()}


def ties(
    states: Sequence[State], weights: Sequence[float], base: State, scale: float = 1.0, density: float = 0.2
) -> dict[str, Tensor]:
    """Trim, elect a sign, average those that agree: ``theta_0 + s * tau``.

    Of each task vector ``tau_i = theta_i - theta_0`` the ``density`` largest entries stay, counted over the
    whole model; the sign of an entry is that of ``sum_i w_i tau_i``; tau is the weighted mean of the entries
    that have it. With density 1, models that agree are merged into what they agree on.

    Source: Yadav et al., *TIES-Merging*, arXiv 2306.01708, algorithm 1.
    """
    bounds = [_smallest_kept(state, base, density) for state in states]
    merged = {}
    for name, start in base.items():
        total = torch.zeros_like(start, dtype=torch.float32)
        trimmed = []
        for state, bound, weight in zip(states, bounds, weights, strict=True):
            tau = state[name].float() - start.float()
            tau[tau.abs() < bound] = 0
            trimmed.append(tau)
            total += weight * tau
        sign = total.sign()
        amount, count = torch.zeros_like(total), torch.zeros_like(total)
        for tau, weight in zip(trimmed, weights, strict=True):
            agrees = tau.sign() == sign
            amount += weight * tau * agrees
            count += weight * (agrees & (tau != 0))
        mean = amount / count.where(count > 0, torch.ones_like(count))
        merged[name] = (start.float() + scale * mean).to(start.dtype)
    return merged


def slerp(one: State, other: State, t: float) -> dict[str, Tensor]:
    """Along the arc from ``one`` (t = 0) to ``other`` (t = 1), tensor by tensor, each as one vector.

    ``sin((1 - t) a) / sin(a) * x + sin(t a) / sin(a) * y``, a the angle between x and y; where it is below
    1e-4, or a tensor is zero, the straight line. Source: Shoemake, *Animating rotation with quaternion
    curves* (SIGGRAPH 1985); used to merge checkpoints by Qwen3 Embedding, arXiv 2506.05176.
    """
    return {name: _arc(tensor, other[name], t) for name, tensor in one.items()}


def normalised(weights: Sequence[float]) -> list[float]:
    """The weights, made to sum to 1.

    Raises:
        UserError: they sum to 0.
    """
    total = sum(weights)
    if not abs(total) > 0:
        raise UserError("the weights of a mean sum to 0; give weights that do not")
    return [weight / total for weight in weights]


def _summed(start: Tensor, others: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """``start + sum_i f_i (x_i - start)``."""
    found = start.float().clone()
    for tensor, factor in zip(others, factors, strict=True):
        found += factor * (tensor.float() - start.float())
    return found.to(start.dtype)


def _smallest_kept(state: State, base: State, density: float) -> float:
    """The size of the smallest entry of a task vector that is among its ``density`` largest."""
    sizes = torch.cat([(state[name].float() - base[name].float()).abs().flatten() for name in base])
    kept = max(1, round(density * len(sizes)))
    return float(sizes.kthvalue(len(sizes) - kept + 1).values)


def _arc(x: Tensor, y: Tensor, t: float) -> Tensor:
    one, other = x.double().flatten(), y.double().flatten()
    sizes = one.norm() * other.norm()
    # of the chord, not of the cosine, which is 1 to rounding long before the angle is 0
    chord = (one / one.norm() - other / other.norm()).norm() if sizes > 0 else sizes
    angle = 2 * torch.asin((chord / 2).clamp(max=1))
    if angle < _PARALLEL or torch.pi - angle < _PARALLEL:
        return _summed(x, [y], [t])
    found = (torch.sin((1 - t) * angle) * one + torch.sin(t * angle) * other) / torch.sin(angle)
    return found.reshape(x.shape).to(x.dtype)
