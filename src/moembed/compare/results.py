"""What a comparison found, as typed values with a JSON form.

Everybody reads these: the page, the model card, the command line, the demo. `to_json` gives what
``moembed compare --json`` prints, and `from_json` reads it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from moembed.compare.estimates import Difference, Estimate
from moembed.types import UserError

T = TypeVar("T")
Metrics = dict[str, dict[str, Estimate]]  # system -> metric
Differences = dict[str, dict[str, Difference]]  # system -> metric, the system less the reference

LEAST_ITEMS = 30  # of fewer, intervals say little: a language or length with fewer of a task leaves it out
SCORE = "score"  # the metric of a mean over several kinds of tasks: the mean of their main metrics


@dataclass(frozen=True, slots=True)
class Cells:
    """What every system scores, and has more than the reference; systems without a score are absent."""

    metrics: Metrics
    differences: Differences


@dataclass(frozen=True, slots=True)
class TaskCells(Cells):
    """One task, by all its metrics; ``main`` is the one that sums it up."""

    kind: str
    main: str
    items: int
    languages: list[str]


@dataclass(frozen=True, slots=True)
class MeanCells(Cells):
    """The mean over several tasks, which count alike; its only metric is ``SCORE``."""

    tasks: int


@dataclass(frozen=True, slots=True)
class KindCells(MeanCells):
    """The mean over the tasks of one kind, whose metric is called ``main``."""

    main: str


@dataclass(frozen=True, slots=True)
class GroupCells(MeanCells):
    """The items of one language, or of one range of lengths, of all tasks that have enough of them."""

    items: int


@dataclass(frozen=True, slots=True)
class BordaRank:
    """``points``: over all tasks, the number of systems below, ties half; ``rank``: 1 for the most."""

    points: float
    rank: int


@dataclass(frozen=True, slots=True)
class ChosenTasks:
    """A few tasks that stand for all.

    Attributes:
        tasks: in the order in which they were chosen.
        spearman: rank correlation of the systems' means over them with the means over all tasks.
        error: of a system that had no say in the choice, the mean distance of what they predict from its mean
            over all tasks, each system being left out once.
        systems: how many there are, and ``of`` how many tasks were chosen from.
    """

    tasks: list[str]
    spearman: float
    error: float
    systems: int
    of: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """The scores of several systems and their differences to one of them, the reference.

    Attributes:
        systems: their names, in the order given.
        seeds: how many runs each system has.
        paired: the systems whose runs were compared to those of the reference one by one.
        tasks, kinds, languages, lengths: by name; see the classes of the values.
        overall: over all tasks.
        borda: the systems that have all tasks, best first; nothing where there are not two of both.
        chosen: a few tasks that stand for all, where they were asked for.
    """

    systems: list[str]
    reference: str
    seeds: dict[str, int]
    tasks: Mapping[str, TaskCells]
    overall: MeanCells
    kinds: dict[str, KindCells]
    languages: dict[str, GroupCells]
    lengths: dict[str, GroupCells]
    borda: dict[str, BordaRank] = field(default_factory=dict)
    paired: list[str] = field(default_factory=list)
    chosen: ChosenTasks | None = None

    @property
    def others(self) -> list[str]:
        """All systems but the reference."""
        return [system for system in self.systems if system != self.reference]

    def to_json(self) -> dict[str, Any]:
        """Lists, dicts, strings and numbers; what is not known (None) has no key."""
        return as_json(self)

    @classmethod
    def from_json(cls: type[T], values: Mapping[str, Any]) -> T:
        """What `to_json` made of an object of this class, or of one that holds more.

        Raises:
            UserError: a part is missing or of another type.
        """
        return read_as(cls, values, "the result of a comparison")


def as_json(value: Any) -> dict[str, Any]:
    """A dataclass as JSON holds it, without the entries that are None."""
    return asdict(value, dict_factory=_known)


def _known(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What a task is stands before its many figures, for those who read the file."""
    last = ("metrics", "differences")
    return {key: item for key, item in sorted(pairs, key=lambda pair: pair[0] in last) if item is not None}


def read_as(kind: type[T], values: Any, what: str) -> T:
    """``values`` as an object of the dataclass ``kind``.

    Raises:
        UserError: they are not ``what`` they should be: the first fault is named.
    """
    from pydantic import TypeAdapter, ValidationError  # not needed to print a result

    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        problem = "is missing" if first["type"] == "missing" else f"is {first['input']!r:.60}"
        raise UserError(f"this is not {what}: {place} {problem}; make it again") from None
