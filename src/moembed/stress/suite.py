"""All stress tests, or some, on any number of systems, into one result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

from moembed.encoding import Bar
from moembed.evaluation.beir import RetrievalTask
from moembed.stress import capacity, invariance, limit, long_context, noise, tables
from moembed.stress.subject import Subject
from moembed.types import UserError

Part = tuple[dict[str, Any], Callable[[Subject], Any]]  # what it is made of, and what measures a system


@dataclass(frozen=True)
class Settings:
    """What the tests are made of.

    ``limit_tasks``: instances of LIMIT. ``dims`` of the capacity probe. ``lengths`` of the long documents,
    see ``long_context.measure``. ``noise_task``: default ``noise.docstring_task``.
    """

    limit_tasks: Sequence[RetrievalTask] = field(default_factory=lambda: [limit.limit_task()])
    dims: Sequence[int] = tuple(range(2, 9))
    lengths: Sequence[int] | None = None
    noise_task: RetrievalTask | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.lengths and min(self.lengths) < long_context.SHORTEST:
            raise UserError(
                f"documents of {min(self.lengths)} tokens are too short: "
                f"take lengths of {long_context.SHORTEST} or more"
            )


@dataclass(frozen=True, slots=True)
class PartResult:
    """What a part was made of, and what each system did: the scores that ``measure`` of its file gives."""

    facts: dict[str, Any]
    systems: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**self.facts, "systems": _plain(self.systems)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def stress(
    subjects: Iterable[Subject], parts: Sequence[str], settings: Settings, bar: Bar
) -> dict[str, PartResult]:
    """Run ``parts`` (keys of ``PARTS``), and put together what each system did.

    A system that a part has nothing to ask is missing there: BM25 has no vectors. ``bar(what, total)`` shows
    progress. The models are taken one after the other, so a generator holds one in memory at a time.
    """
    prepared = {part: PARTS[part](settings, bar) for part in parts}
    result = {part: PartResult(facts) for part, (facts, _) in prepared.items()}
    for subject in subjects:
        for part, (_, measure) in prepared.items():
            with bar(f"{subject.name}: {part}", None) as subject.advance:
                found = measure(subject)
            if found is not None:
                result[part].systems[subject.name] = found
    return result


def _limit(settings: Settings, bar: Bar) -> Part:
    tasks = settings.limit_tasks
    facts = {
        task.name: {
            "documents": len(task.documents),
            "queries": len(task.queries),
            "chance": limit.chance(task),
        }
        for task in tasks
    }
    return {"tasks": facts}, lambda subject: {task.name: limit.measure(subject, task) for task in tasks}


def _capacity(settings: Settings, bar: Bar) -> Part:
    with bar("capacity of dimensions", len(settings.dims)) as advance:
        points = capacity.probe(settings.dims, settings.seed, advance)

    def guess(subject: Subject) -> capacity.CapacityGuess | None:
        if subject.model is None or not subject.has_vectors:
            return None
        return capacity.extrapolate(points, subject.model.dim)

    return capacity.as_dict(points), guess


def _long(settings: Settings, bar: Bar) -> Part:
    facts = {"depths": list(long_context.DEPTHS), "chance": 1 / long_context.DOCUMENTS}
    return facts, lambda subject: long_context.measure(subject, settings.lengths, settings.seed)


def _invariance(settings: Settings, bar: Bar) -> Part:
    return {"texts": len(invariance.TEXTS)}, invariance.measure


def _noise(settings: Settings, bar: Bar) -> Part:
    task = settings.noise_task or noise.docstring_task(seed=settings.seed)
    facts = {
        "task": task.name,
        "metric": noise.METRIC,
        "queries": len(task.queries),
        "documents": len(task.documents),
    }
    return facts, lambda subject: noise.measure(subject, task, settings.seed)


def _tables(settings: Settings, bar: Bar) -> Part:
    facts = {"tables": tables.TABLES, "orders": tables.ORDERS}
    return facts, lambda subject: tables.measure(subject, settings.seed)


PARTS: dict[str, Callable[[Settings, Bar], Part]] = {
    "limit": _limit,
    "capacity": _capacity,
    "long": _long,
    "invariance": _invariance,
    "noise": _noise,
    "tables": _tables,
}
