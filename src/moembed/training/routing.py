"""What training does with the statistics of the routers: losses, biases, and what is logged of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from moembed.losses.balance import balance_loss, corrected_bias, z_loss
from moembed.moe.router import Router, Routing
from moembed.training.distributed import World
from moembed.training.settings import LossConfig
from moembed.types import Batch, RouterStats, UserError

Group = tuple[str, str]  # role, language ("" where the data does not say)
STARVED = 0.1  # an expert with less than this share of 1/E ...
STARVED_STEPS = 100  # ... for so many steps in a row is as good as dead


class Balance:
    """The router's terms of the loss, and what outlives a step: running counts and selection biases.

    With ``balance_window`` w above 1, the shares f_e of the balance loss are those of a running mean,
    ``f <- f + (f_step - f) / min(steps, w)``, the step in hand included.
    """

    def __init__(self, config: LossConfig, model: nn.Module) -> None:
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


class Starving:
    """Finds experts that get next to nothing for many steps; each is told of once."""

    def __init__(self) -> None:
        self.hungry: dict[tuple[int, int], int] = {}  # (layer, expert) -> steps in a row

    def update(self, total: Sequence[RouterStats]) -> list[str]:
        """Sentences about the experts that are found dead at this step."""
        found = []
        for part in total:
            for expert, load in enumerate(part.load_E.tolist()):
                place = part.layer, expert
                starved = load < STARVED / len(part.count_E)
                self.hungry[place] = self.hungry.get(place, 0) + 1 if starved else 0
                if self.hungry[place] == STARVED_STEPS:
                    found.append(
                        f"expert {expert} of layer {part.layer} is dying: for {STARVED_STEPS} steps it had "
                        "less than a tenth of its fair share; raise loss.balance or set loss.bias_rate"
                    )
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"hungry": self.hungry}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.hungry = state["hungry"]


class Watch:
    """Routing statistics by group of texts, gathered by hooks on the routers. A group is (role, language).

    Args:
        groups: all of the step, the same in every process.
        group_CB: of every text of every chunk, in the caller's order, its place in ``groups``.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], chunks: Sequence[Batch], group_CB: Sequence[Tensor]
    ) -> None:
        self.routers, self.groups = routers(model), groups
        self.chunks, self.group_CB = chunks, group_CB
        self.group_T = torch.empty(0, dtype=torch.long)
        # tokens, entropy, chosen mass, then the count of each expert
        self.sum_LGS = [
            torch.zeros(len(groups), 3 + len(router.weight_ED), dtype=torch.float64)
            for router in self.routers
        ]

    @contextmanager
    def __call__(self, chunk: int) -> Iterator[None]:
        """Count what is routed inside the block, while chunk number ``chunk`` is embedded."""
        batch, packed_B = self.chunks[chunk], torch.empty_like(self.group_CB[chunk])
        packed_B[batch.restore_B] = self.group_CB[chunk]
        self.group_T = packed_B.repeat_interleave(torch.tensor(batch.length_B))
        handles = [router.register_forward_hook(self._count) for router in self.routers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, router: nn.Module, arguments: Any, routing: Routing) -> None:
        sum_GS = self.sum_LGS[self.routers.index(router)]  # type: ignore[arg-type]
        group_P, expert_P = self.group_T[routing.token_P.cpu()], routing.expert_P.cpu()
        sum_GS[:, 0].index_add_(0, self.group_T, torch.ones(len(self.group_T), dtype=torch.float64))
        sum_GS[:, 1].index_add_(0, self.group_T, routing.entropy_T.double().cpu())
        sum_GS[:, 2].index_add_(0, group_P, routing.prob_P.double().cpu())
        sum_GS.index_put_(
            (group_P, 3 + expert_P), torch.ones(len(group_P), dtype=torch.float64), accumulate=True
        )

    def summary(self, world: World) -> dict[str, dict[str, list[dict[str, object]]]]:
        """By role and, where the data says it, by language: ``RouterStats.summary`` of each layer."""
        for sum_GS in self.sum_LGS:
            world.sum(sum_GS)
        found: dict[str, dict[str, list[dict[str, object]]]] = {}
        for place, name in enumerate(("roles", "languages")):
            for label in sorted({group[place] for group in self.groups} - {""}):
                mine = [group[place] == label for group in self.groups]
                found.setdefault(name, {})[label] = [
                    _stats(router, sum_GS[mine].sum(0)).summary()
                    for router, sum_GS in zip(self.routers, self.sum_LGS, strict=True)
                ]
        return found


def _stats(router: Router, sum_S: Tensor) -> RouterStats:
    tokens, entropy, mass = sum_S[:3]
    nothing = torch.zeros(())
    return RouterStats(router.layer, int(tokens), sum_S[3:], nothing, nothing, entropy, mass)


def routers(model: nn.Module) -> list[Router]:
    return [module for module in model.modules() if isinstance(module, Router)]
