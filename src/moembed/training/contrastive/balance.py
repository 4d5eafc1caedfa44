"""The routers' terms of the loss, and what of them outlives a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from moembed.losses.balance import balance_loss, corrected_bias, z_loss
from moembed.training.monitors.routing import routers
from moembed.types import RouterStats, UserError


class RouterTerms(Protocol):
    """The part of a loss's settings that is about routers; see `LossConfig`."""

    @property
    def balance(self) -> float: ...

    @property
    def balance_window(self) -> int: ...

    @property
    def bias_rate(self) -> float: ...

    @property
    def z(self) -> float: ...


class Balance:
    """The router's terms of the loss, and what outlives a step: running counts and selection biases.

    With ``balance_window`` w above 1, the shares f_e of the balance loss are those of a running mean,
    ``f <- f + (f_step - f) / min(steps, w)``, the step in hand included.
    """

    def __init__(self, config: RouterTerms, model: nn.Module) -> None:
        self.config = config
        self.routers = routers(model)
        self.steps = 0
        self.load_LE: list[Tensor] = []
        if config.bias_rate and any(router.bias_E is None for router in self.routers):
            raise UserError("loss.bias_rate moves the selection bias of the routers, and this model has none")

    def loss(self, stats: Sequence[RouterStats], total: Sequence[RouterStats]) -> Tensor:
        """The share that ``stats`` have in the router loss of a step whose sums are ``total``."""
        loads = self._running(total)
        running = [replace(part, count_E=load_E) for part, load_E in zip(total, loads, strict=True)]
        return self.config.balance * balance_loss(stats, running) + self.config.z * z_loss(stats, total)

    @torch.no_grad()
    def update(self, total: Sequence[RouterStats]) -> None:
        """After the optimiser's step: take its counts in and move the biases against them."""
        self.load_LE = self._running(total)
        self.steps += 1
        if self.config.bias_rate:
            for router, load_E in zip(self.routers, self.load_LE, strict=True):
                assert router.bias_E is not None
                router.bias_E.copy_(corrected_bias(router.bias_E, load_E, self.config.bias_rate))

    def _running(self, total: Sequence[RouterStats]) -> list[Tensor]:
        loads = [part.load_E for part in total]
        steps = min(self.steps + 1, self.config.balance_window)
        if steps == 1:
            return loads
        return [old + (new - old) / steps for old, new in zip(self.load_LE, loads, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "load_LE": self.load_LE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.load_LE = state["steps"], state["load_LE"]
