"""Settings that change with the run: the hardness of a curriculum as a function of the step alone.

A schedule maps shares of the run to values, with straight lines between them: ``{0: 0, 0.5: 1}`` rises until
the middle of the run and stays. Numbers of things are rounded to whole ones. Because a value follows from the
step, a resumed run goes on as it would have.

Source: in the style of PEG, Wu et al., arXiv 2311.11691, whose abstract says that the attention to samples
changes with the progress of training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from moembed.training.contrastive.shaping import OPTIONS, WeightConfig

Points = dict[float, float]  # share of the run -> value
QUEUE = "loss.queue"
WHOLE = {"negatives": 0, "batch_size": 2, QUEUE: 0}  # numbers of things, the least there may be
OF_WEIGHTS = {"loss.weight.alpha": "alpha", "loss.weight.gamma": "gamma", "loss.weight.width": "width"}


class ScheduledLoss(Protocol):
    """Of a loss; see `LossConfig`."""

    @property
    def weight(self) -> tuple[WeightConfig, ...]: ...

    @property
    def queue(self) -> int: ...


class Scheduled(Protocol):
    """The part of a config that schedules are about; see `ContrastiveConfig`."""

    @property
    def schedules(self) -> Mapping[str, Points]: ...

    @property
    def loss(self) -> ScheduledLoss: ...

    @property
    def negatives(self) -> int | None: ...

    @property
    def minutes(self) -> float | None: ...

    @property
    def epochs(self) -> float | None: ...

    @property
    def batch_size(self) -> int: ...


Config = TypeVar("Config", bound=BaseModel)


def value(points: Points, share: float) -> float:
    """Of a schedule where ``share`` of the run is done."""
    shares = sorted(points)
    return float(np.interp(share, shares, [points[at] for at in shares]))


def values(schedules: Mapping[str, Points], share: float) -> dict[str, float]:
    """Of every schedule, by name; whole numbers where they count things."""
    found = {name: value(points, share) for name, points in schedules.items()}
    return {name: math.floor(number + 0.5) if name in WHOLE else number for name, number in found.items()}


def at(config: Config, share: float) -> Config:
    """``config`` as it is where ``share`` of the run is done; itself, where it has no schedules."""
    schedules: Mapping[str, Points] = getattr(config, "schedules")  # noqa: B009
    if not schedules:
        return config
    now = values(schedules, share)
    loss = getattr(config, "loss")  # noqa: B009
    changed = {name: number for name, number in now.items() if name in WHOLE and name != QUEUE}
    of_loss: dict[str, Any] = {"queue": now[QUEUE]} if QUEUE in now else {}
    weights: tuple[WeightConfig, ...] = loss.weight
    for name, option in OF_WEIGHTS.items():
        if name in now:
            weights = tuple(
                weight.model_copy(update={option: now[name]}) if option in OPTIONS[weight.kind] else weight
                for weight in weights
            )
    of_loss["weight"] = weights
    return config.model_copy(update=changed | {"loss": loss.model_copy(update=of_loss)})


def require_in_range(config: Scheduled) -> None:
    """Raises ValueError: a schedule of what has none, shares that are none, values out of range."""
    for name, points in config.schedules.items():
        if name not in WHOLE.keys() | OF_WEIGHTS.keys():
            known = ", ".join([*WHOLE, *OF_WEIGHTS])
            raise ValueError(f"schedules has no {name!r}; what can change with the run: {known}")
        if not points:
            raise ValueError(f"the schedule of {name} is empty: map shares of the run, 0 to 1, to values")
        if wrong := [share for share in points if not 0 <= share <= 1]:
            raise ValueError(f"the schedule of {name} has the share {wrong[0]:g}; shares of a run are 0 to 1")
        for number in points.values():
            _require(config, name, number)
    if config.schedules and config.minutes is not None:
        raise ValueError(
            "schedules go by the share of the run that is done: give steps or epochs, no minutes"
        )
    if "negatives" in config.schedules and config.negatives is not None:
        raise ValueError("negatives has a schedule, which says how many: leave negatives itself out")
    if config.schedules.get(QUEUE) and not config.loss.queue:
        raise ValueError(f"{QUEUE} has a schedule and is 0: set it to the largest of the schedule")
    if sizes := config.schedules.get("batch_size"):
        if config.epochs is not None:
            raise ValueError("a schedule of batch_size needs steps: epochs would not say how many there are")
        if max(sizes.values()) != config.batch_size:
            raise ValueError(
                f"the schedule of batch_size goes up to {max(sizes.values()):g} and batch_size is "
                f"{config.batch_size}: set batch_size to the largest of the schedule"
            )


def _require(config: Scheduled, name: str, number: float) -> None:
    if name in WHOLE:
        if number != round(number) or number < WHOLE[name]:
            raise ValueError(
                f"the schedule of {name} has the value {number:g}; it is a whole number from {WHOLE[name]} on"
            )
        if name == QUEUE and number > config.loss.queue > 0:
            raise ValueError(
                f"the schedule of {QUEUE} has the value {number:g} and the queue holds {config.loss.queue}: "
                f"set {QUEUE} to the largest of the schedule"
            )
        return
    option = OF_WEIGHTS[name]
    having = [weight for weight in config.loss.weight if option in OPTIONS[weight.kind]]
    if len(having) != 1:
        raise ValueError(
            f"{name} has a schedule, and {len(having)} weights of loss.weight have {option}: it is for one"
        )
    (weight,) = having
    try:
        type(weight)(kind=weight.kind, **{option: number})
    except ValidationError as error:
        told = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"the schedule of {name} has the value {number:g}: {told}") from None
