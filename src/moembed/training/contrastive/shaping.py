"""What a recipe adds to the scores of a contrastive loss: its settings, and the functions that they name."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from torch import Tensor

from moembed.config import Strict
from moembed.losses.mixing import Mixing
from moembed.losses.shaped import Shaping
from moembed.losses.weights import CANDIDATE_WEIGHTS, QUERY_WEIGHTS, Weight

WeightKind = Literal["focal", "hardness", "margin"]
Direction = Literal["query_to_query", "document_to_document"]
OPTIONS = {"focal": {"gamma"}, "hardness": {"alpha", "on"}, "margin": {"alpha", "width"}}  # of each kind


class WeightConfig(Strict):
    """How much queries or candidates count: see `moembed.losses.weights`.

    ``focal`` (``gamma``) and ``margin`` (``alpha``, ``width``) weigh queries, ``hardness`` (``alpha``,
    ``on``) weighs candidates.
    """

    kind: WeightKind
    gamma: float = Field(default=0.5, ge=0, le=10)
    alpha: float = Field(default=1.0, ge=0, le=100)
    width: float = Field(default=0.1, gt=0)
    on: Literal["all", "in_batch", "hard"] = "all"

    @model_validator(mode="after")
    def _options_of_its_kind(self) -> WeightConfig:
        if wrong := sorted(self.changed_keys - {"kind"} - OPTIONS[self.kind]):
            known = ", ".join(sorted(OPTIONS[self.kind]))
            raise ValueError(f"{wrong[0]} is no option of the weight {self.kind}; it has {known}")
        if self.kind == "margin" and self.alpha > 1:
            raise ValueError("alpha of the weight margin is a share, from 0 to 1")
        return self

    def function(self) -> Weight:
        options = {name: getattr(self, name) for name in OPTIONS[self.kind]}
        return partial((QUERY_WEIGHTS | CANDIDATE_WEIGHTS)[self.kind], **options)


class MaskConfig(Strict):
    """The model's own scores as a mask: what is above the positive's plus ``margin`` is no negative."""

    margin: float = Field(default=0.1, ge=-2, le=2)


class MixingConfig(Strict):
    """Candidates mixed of a query's hard negatives: see `moembed.losses.mixing`.

    ``columns`` per query are for ``pair``; ``list`` makes one. ``stop_gradient``: parents learn nothing.
    """

    kind: Literal["pair", "list"] = "pair"
    columns: int = Field(default=1, ge=1, le=64)
    parents: int = Field(default=8, ge=2, le=64)
    stop_gradient: bool = False

    @model_validator(mode="after")
    def _one_list(self) -> MixingConfig:
        if self.kind == "list" and self.columns > 1:
            raise ValueError("a list makes one candidate per query: leave columns out, or take kind pair")
        return self


class ShapingConfig(Strict):
    """The part of a loss's settings that is about its scores; see `LossConfig`.

    ``in_batch`` false: only the hard negatives of a query are its negatives, nothing of other queries is.
    """

    weight: tuple[WeightConfig, ...] = ()
    mask: MaskConfig | None = None
    directions: tuple[Direction, ...] = ()
    mixing: MixingConfig | None = None
    in_batch: bool = True

    @field_validator("weight", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        if value is None:
            return ()
        return [value] if isinstance(value, (dict, WeightConfig)) else value

    @field_validator("directions", mode="after")
    @classmethod
    def _once(cls, value: tuple[Direction, ...]) -> tuple[Direction, ...]:
        if len(set(value)) < len(value):
            raise ValueError("name each direction once")
        return value

    @model_validator(mode="after")
    def _own_negatives_alone(self) -> ShapingConfig:
        if self.directions and not self.in_batch:
            raise ValueError(
                "directions are terms of other queries of the batch, and in_batch is false: take one out"
            )
        if not self.in_batch and any(weight.on == "in_batch" for weight in self.weight):
            raise ValueError("a weight is on in_batch, and in_batch is false: there is nothing to weigh")
        return self

    @property
    def shapes(self) -> bool:
        """Whether anything is changed in the plain loss."""
        return bool(self.weight or self.mask or self.directions or self.mixing or not self.in_batch)

    def shaping(self, owner_N: Tensor | None, seed: int = 0) -> Shaping | None:
        """None where nothing is added; ``seed``: of what is left to chance."""
        if not self.shapes:
            return None
        return Shaping(
            margin=self.mask.margin if self.mask else None,
            candidate_weights=self._weights(CANDIDATE_WEIGHTS),
            query_weights=self._weights(QUERY_WEIGHTS),
            directions=self.directions,
            mixing=self._mixing(seed),
            in_batch=self.in_batch,
            owner_N=owner_N,
        )

    def _mixing(self, seed: int) -> Mixing | None:
        own = self.mixing
        return Mixing(own.kind, own.columns, own.parents, own.stop_gradient, seed) if own else None

    def _weights(self, kinds: dict[str, Any]) -> tuple[Weight, ...]:
        return tuple(weight.function() for weight in self.weight if weight.kind in kinds)
