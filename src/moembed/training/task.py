"""What the loop asks of whatever is trained, and of whatever looks at it on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from moembed.types import RouterStats


class Stateful(Protocol):
    """What outlives a step beside the weights: a learned temperature, running counts, the best score …"""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Terms:
    """One step, before the optimiser moves: what it cost and how large it was, all processes together.

    Attributes:
        loss: the sum that was differentiated.
        pairs: examples of the batch.
        truncated: texts that were cut.
        router: statistics of every MoE layer, over all tokens.
        log: further entries of the line in ``metrics.jsonl``.
    """

    loss: float
    pairs: int
    truncated: int = 0
    router: Sequence[RouterStats] = ()
    log: Mapping[str, Any] = field(default_factory=dict)


B = TypeVar("B")


class Task(Protocol[B]):
    """Something to train: where batches come from, what they cost, and what is kept of it.

    Attributes:
        module: holds every parameter that the optimiser moves.
        workers: threads that make batches ahead of the step.
    """

    module: nn.Module
    workers: int

    def batch(self, step: int) -> B:
        """The share of this process in the batch of ``step`` (from 0 on): a function of ``step`` alone."""

    def backward(self, step: int, batch: B) -> Terms:
        """Leave in ``module`` the gradients of the whole batch, those of all processes summed."""

    def update(self, terms: Terms) -> Mapping[str, Any]:
        """What follows the optimiser's step; returns entries of the log."""

    def examples(self, batch: B) -> list[dict[str, Any]]:
        """The batch as rows of data, for whoever has to find out what is wrong with it."""

    def contents(self) -> dict[str, str]:
        """Name -> fingerprint of all data: a resumed run must find the same."""

    def states(self) -> Mapping[str, Stateful]:
        """What goes into a checkpoint beside the model and the optimiser, by name."""

    def write(self, folder: Path) -> None:
        """Write the model, as a folder that loads by itself."""

    def read(self, folder: Path) -> None:
        """Load the weights of such a folder, in place."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When a monitor is asked: after ``step`` steps, ``seconds`` into the run as the step began."""

    step: int
    seconds: float
    last: bool
    terms: Terms


@dataclass(frozen=True, slots=True)
class Look:
    """What a monitor found.

    Attributes:
        log: entries of the step's line in ``metrics.jsonl``.
        sentences: for the eye.
        best: name and value of a measure by which the model is the best so far, and should be kept.
    """

    log: Mapping[str, Any] = field(default_factory=dict)
    sentences: Sequence[str] = ()
    best: tuple[str, float] | None = None


def distinct(names: Iterable[str]) -> list[str]:
    """The names, none of them twice: of two sources called ``pairs`` the second is ``pairs (2)``."""
    found: dict[str, None] = {}
    for name in names:
        own, number = name, 2
        while own in found:
            own, number = f"{name} ({number})", number + 1
        found[own] = None
    return list(found)


class Monitor:
    """Looks at a model in training and changes nothing about it; all processes call it together.

    ``name`` is the key of its state in the checkpoints.
    """

    name: str

    def begin(self, step: int) -> Look:
        """Before the first step of this process, which is ``step`` (above 0 in a resumed run)."""
        return Look()

    def due(self, moment: Moment) -> bool:
        """Whether to look now."""
        raise NotImplementedError

    def look(self, moment: Moment) -> Look:
        """Look."""
        raise NotImplementedError

    def state_dict(self) -> Any:
        """What must outlive an interruption."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Go on from such a state."""
