"""Which experts the texts of each role and language go to, and how far the experts are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from moembed.moe.layer import MoE
from moembed.moe.router import Router, Routing
from moembed.training.parallel import World
from moembed.training.task import Look, Moment, Monitor
from moembed.types import Batch, RouterStats

Group = tuple[str, str]  # role, language ("" where the data does not say)
Observe = Callable[[int], AbstractContextManager[object]]  # entered while chunk number i is embedded


def unobserved(chunk: int) -> AbstractContextManager[object]:
    return nullcontext()


class RoutingProbe(Monitor):
    """Routing statistics by group of texts, every ``every`` steps, gathered by hooks on the routers."""

    name = "routing"

    def __init__(self, model: nn.Module, every: int, world: World) -> None:
        self.routers, self.every, self.world = routers(model), every, world
        self.layers = [module for module in model.modules() if isinstance(module, MoE)]
        self.groups: Sequence[Group] = ()
        self.group_T = torch.empty(0, dtype=torch.long)
        self.sum_LGS: list[Tensor] = []

    def watch(
        self, step: int, groups: Sequence[Group], chunks: Sequence[Batch], group_CB: Sequence[Tensor]
    ) -> Observe:
        """What to enter around the first embedding of each chunk of ``step``; nothing if it is not due.

        Args:
            groups: all of the step, the same in every process.
            group_CB: of every text of every chunk, in the caller's order, its place in ``groups``.
        """
        self.groups = ()
        if not self.routers or step % self.every:
            return unobserved
        self.groups = groups
        # tokens, entropy, chosen mass, then the count of each expert
        self.sum_LGS = [
            torch.zeros(len(groups), 3 + router.num_experts, dtype=torch.float64) for router in self.routers
        ]
        return lambda chunk: self._counting(chunks[chunk], group_CB[chunk])

    @contextmanager
    def _counting(self, batch: Batch, group_B: Tensor) -> Iterator[None]:
        """Count what is routed inside the block, while ``batch`` is embedded."""
        packed_B = torch.empty_like(group_B)
        packed_B[batch.restore_B] = group_B
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

    def due(self, moment: Moment) -> bool:
        return bool(self.groups)  # the step was watched

    def look(self, moment: Moment) -> Look:
        apart = {str(moe.router.layer): round(moe.experts.distance(), 6) for moe in self.layers}
        return Look({**self.summary(), "expert_distance": apart})

    def summary(self) -> dict[str, dict[str, list[dict[str, object]]]]:
        """By role and, where the data says it, by language: ``RouterStats.summary`` of each layer."""
        for sum_GS in self.sum_LGS:
            self.world.sum(sum_GS)
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
    return RouterStats(router.layer, int(tokens), sum_S[3:], nothing, nothing, entropy, mass, router.learned)


def routers(model: nn.Module) -> list[Router]:
    return [module for module in model.modules() if isinstance(module, Router)]
