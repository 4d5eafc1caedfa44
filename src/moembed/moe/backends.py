"""The backends that compute routed experts, all with the same values: ONE list of name, function, why not.

The caller may name one (``encoder.moe_backend = "fused"``), else the environment
(``MOEMBED_MOE_BACKEND=fused``). ``auto`` takes ``grouped`` on a CPU; on a GPU it times those that can run on
random states once, and takes the fastest from then on (`moembed.moe.timing`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from moembed.machine import requested_backend, supported_backend
from moembed.moe import fused, grouped, tiles, timing
from moembed.moe.experts import Experts
from moembed.moe.loop import loop
from moembed.moe.router import Router


def _anywhere(experts: Experts, dtype: torch.dtype, device: torch.device) -> None:
    """It runs on every machine."""


class Backend(NamedTuple):
    """``run`` computes; ``unsupported_reason`` says in words why it cannot on this machine, if so."""

    name: str
    run: timing.Run
    unsupported_reason: Callable[[Experts, torch.dtype, torch.device], str | None]


BACKENDS = (
    Backend("loop", loop, _anywhere),  # the reference: never chosen, only named
    Backend("grouped", tiles.grouped, _anywhere),
    Backend("grouped_mm", grouped.grouped_mm, grouped.unsupported_reason),
    Backend("fused", fused.fused, fused.unsupported_reason),
)
BY_NAME = {backend.name: backend for backend in BACKENDS}


def named(experts: Experts, hidden_TD: Tensor, wanted: str) -> Backend | None:
    """The backend that caller or environment name, or what runs in its place; None: none is named."""
    name = requested_backend("moe_backend", wanted, BY_NAME)
    if name is None:
        return None
    reason = BY_NAME[name].unsupported_reason(experts, grouped.precision(hidden_TD), hidden_TD.device)
    return BY_NAME[supported_backend("moe_backend", name, reason, "grouped")]


def choose(router: Router, experts: Experts, hidden_TD: Tensor, wanted: str) -> Backend:
    """The backend these experts run on: the one that was named, else the fastest."""
    dtype, device = grouped.precision(hidden_TD), hidden_TD.device

    def reason(name: str) -> str | None:
        return BY_NAME[name].unsupported_reason(experts, dtype, device)

    def seconds(name: str) -> float:
        return timing.seconds(router, experts, hidden_TD, BY_NAME[name].run)

    if backend := named(experts, hidden_TD, wanted):
        return backend
    if device.type != "cuda":
        return BY_NAME["grouped"]
    able = [backend.name for backend in BACKENDS[1:] if reason(backend.name) is None]
    return BY_NAME[timing.fastest(timing.describe(router, experts, dtype, device), able, seconds)]
