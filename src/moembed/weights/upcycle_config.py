"""How a dense encoder becomes one with experts: the keys of ``upcycle``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from moembed.config import Strict
from moembed.moe.lora import LoraSpec
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

    ``granularity`` s cuts every expert into s of 1/s of the hidden width (`moembed.weights.fine_grained`):
    there are then s * ``num_experts``, of which a token meets s * ``top_k``, at the same cost. At first the
    parts of an expert are chosen together, and the function is that of ``granularity`` 1.

    ``lora`` keeps one block for all experts, and for each a low-rank change of it (`moembed.moe.lora`).
    """

    num_experts: int = Field(default=8, ge=1)
    every: int = Field(default=2, ge=1)
    bias: Literal["each", "shared", "none"] = "each"
    num_shared_experts: int = Field(default=0, ge=0)
    router: RouterConfig = RouterConfig()
    router_std: float = Field(default=0.02, ge=0)
    init: Literal["copy", "noise", "drop", "cluster"] = "copy"
    share: float = Field(default=0.5, ge=0, le=1)
    noise_std: float = Field(default=0.02, ge=0)
    rank: float = Field(default=0.5, gt=0, le=1)
    sample: int = Field(default=512, ge=1)
    granularity: int = Field(default=1, ge=1)
    lora: LoraSpec | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="before")
    @classmethod
    def _as_many_as_the_tags_name(cls, values: Any) -> Any:
        """A router by tags says how many experts there are."""
        if not isinstance(values, dict) or "num_experts" in values or "router" not in values:
            return values
        try:
            router = RouterConfig.model_validate(values["router"])
        except ValidationError:  # told of the field itself, with its name
            return values
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

    @model_validator(mode="after")
    def _parts_need_a_router_that_learns(self) -> UpcycleConfig:
        if self.granularity > 1 and not isinstance(ROUTERS[self.router.kind], Learned):
            raise ValueError(
                "granularity needs a router that learns to choose the parts of an expert, and one of kind "
                f"{self.router.kind} does not learn: take token_choice, expert_choice or centroid"
            )
        return self

    @model_validator(mode="after")
    def _lora_experts_are_copies(self) -> UpcycleConfig:
        if self.lora is not None and (self.init != "copy" or self.granularity > 1):
            key = f"init {self.init}" if self.init != "copy" else f"granularity {self.granularity}"
            raise ValueError(f"{key} changes full experts, and lora experts share one block: leave one out")
        return self

    @classmethod
    def published(cls) -> UpcycleConfig:
        return cls(bias="shared", router=RouterConfig(normalize=None))
