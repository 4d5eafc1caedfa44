"""What an evaluation found: a comparison of its systems, and what each task was and each system cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moembed.compare.estimates import Estimate
from moembed.compare.results import Comparison, TaskCells
from moembed.evaluation.won_lost import WonLost

Routers = dict[str, dict[str, list[float]]]  # layer -> language -> the share of every expert


@dataclass(frozen=True, slots=True)
class EvaluatedTask(TaskCells):
    """A task with what a reader must know of it.

    Attributes:
        notes: sentences, of what was left out or looks odd.
        documents: of retrieval and reranking.
        seconds: how long each system took.
        truncated: how many texts of the task were longer than each system reads, and were cut.
        queries: of retrieval, by other system: the queries that the reference won and lost against it.
    """

    notes: list[str] = field(default_factory=list)
    documents: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    queries: dict[str, WonLost] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a system takes; None where it is not known.

    ``active_parameters`` is what one token can touch; ``peak_memory_bytes`` is the resident memory of the
    process; ``texts_per_second`` counts embedded texts, not those found in a cache.
    """

    parameters: int | None = None
    active_parameters: int | None = None
    peak_memory_bytes: int | None = None
    bytes_per_vector: int | None = None
    texts_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class SizeScore:
    """The mean score of a system whose stored vectors have ``dim`` coordinates in ``codec``."""

    dim: int
    codec: str
    bytes: int
    score: Estimate


@dataclass(frozen=True, slots=True)
class EvaluationResult(Comparison):
    """What ``moembed evaluate`` prints as JSON: a `Comparison`, and more.

    Attributes:
        cost: by system.
        curves: by system, one entry for every size of vectors that was asked for.
        routers: by system, the load of its experts; dense systems are absent.
        unkept: systems whose scores should have been kept in files, and could not be.
        made: when, with which versions, on which machine, and from which paths.
    """

    tasks: Mapping[str, EvaluatedTask]
    cost: dict[str, Cost] = field(default_factory=dict)
    curves: dict[str, list[SizeScore]] = field(default_factory=dict)
    routers: dict[str, Routers] = field(default_factory=dict)
    unkept: list[str] | None = None
    made: dict[str, Any] | None = field(default=None, compare=False)
