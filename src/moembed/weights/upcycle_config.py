"""How a dense encoder becomes one with experts: the keys of ``upcycle``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from moembed.config import Strict
from moembed.moe.router_config import RouterConfig
from moembed.moe.router_kinds import ROUTERS, Learned


class UpcycleConfig(Strict):
    """Layers ``i`` with ``i % every == 1`` get ``num_experts`` experts for their dense block; 1 means all.

    The defaults keep the function: ``each`` expert is a copy that carries the dense biases, and the chosen
    weights sum to 1, so the upcycled model gives the dense model's vectors. ``bias`` ``shared`` and ``none``
    drop the dense biases; ``shared`` adds one of zeros per layer. ``published()`` is what Nomic Embed v2 did:
    a shared bias and raw router probabilities.

    ``init`` says how experts start, see `moembed.weights.upcycle_init`: as a ``copy``; with ``noise`` of
    standard deviation ``noise_std`` on a ``share`` of their hidden units; with that share drawn anew,
    ``drop``; or each for a ``cluster`` of states, with ``rank`` of their singular values (1: all) and the
    centroids as the router's rows. Clusters are those of ``sample`` texts.
    """

    num_experts: int = Field(default=8, ge=1)
    every: int = Field(default=2, ge=1)
    bias: Literal["each", "shared", "none"] = "each"
    num_shared_experts: int = Field(default=0, ge=0)
    router: RouterConfig = RouterConfig()
    router_std: float = Field(default=0.02, ge=0)
    init: Literal["copy", "noise", "drop", "cluster"] = "copy"
    share: float = Field(default=0.5, gt=0, le=1)
    noise_std: float = Field(default=0.02, gt=0)
    rank: float = Field(default=0.5, gt=0, le=1)
    sample: int = Field(default=512, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="before")
    @classmethod
    def _as_many_as_the_tags_name(cls, values: Any) -> Any:
        """A router by tags says how many experts there are."""
        if not isinstance(values, dict) or "num_experts" in values or "router" not in values:
            return values
        router = RouterConfig.model_validate(values["router"])
        numbers = [expert for experts in router.tags.values() for expert in experts]
        return values | {"num_experts": max(numbers) + 1} if numbers else values

    @model_validator(mode="after")
    def _clusters_need_a_router_that_learns(self) -> UpcycleConfig:
        if self.init == "cluster" and not isinstance(ROUTERS[self.router.kind], Learned):
            raise ValueError(
                "init cluster gives the router the centroids of the states, and one of kind "
                f"{self.router.kind} has no use for them: take centroid or token_choice"
            )
        return self

    @classmethod
    def published(cls) -> UpcycleConfig:
        return cls(bias="shared", router=RouterConfig(normalize=None))
