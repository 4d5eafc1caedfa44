"""`moembed evaluate --suite … --against …`: one evaluation of the tasks of two suites, and what sets them
apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moembed.encoding import Bar, no_bar
from moembed.evaluation.complexity import ITEM_KINDS, MEASURES, PARSER, complexities, dependency
from moembed.evaluation.domain import DomainComparison, compare_suites, no_other_system, no_shared_kind
from moembed.evaluation.files import load_any
from moembed.evaluation.result import EvaluationResult
from moembed.evaluation.suite import load_suite
from moembed.runs.evaluate import evaluate_with_scores
from moembed.runs.evaluated import Models, name_systems
from moembed.runs.system import EvaluationOptions
from moembed.types import UserError

BM25, RANKINGS = "bm25", {"retrieval", "reranking"}  # all that BM25 is scored on


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """What two suites are compared by.

    Attributes:
        measures: of complexity, see `moembed.evaluation.complexity`.
        parser: a model of spaCy, for the measure ``dependency``; None: see `moembed.evaluation.complexity`.
        error_of: a system of the evaluation, for the measure ``error``; it is not compared there.
        parts: into how many parts the items are cut.
    """

    measures: tuple[str, ...] = ("readability", "entropy")
    parser: str | None = None
    error_of: str | None = None
    parts: int = 3


def evaluate_suites(
    models: Models,
    suite: str | Path,
    against: str | Path,
    options: EvaluationOptions | None = None,
    suites: SuiteOptions = SuiteOptions(),
    bar: Bar = no_bar,
) -> tuple[EvaluationResult, DomainComparison]:
    """Evaluate models on the tasks of a domain's suite and of a general one, and compare the two.

    Raises:
        UserError: what ``evaluate`` refuses; a task in both suites; suites without a kind of task in common;
            a measure that is not known, or lacks its parser or its system.
    """
    options = options or EvaluationOptions()
    (domain, own), (general, other) = load_suite(suite), load_suite(against)
    if twice := {path.resolve() for path in own} & {path.resolve() for path in other}:
        raise UserError(f"{sorted(twice)[0]} is in both suites: take it out of one")
    _require_measures(suites)
    sides = [_named(paths) for paths in (own, other)]
    names = list(name_systems(models, options.baselines, options.allow_pickle))
    _require_comparable((domain, general), [set(tasks.values()) for tasks in sides], names, suites.error_of)
    result, systems = evaluate_with_scores(models, [*own, *other], options, bar)
    judge = systems.get(suites.error_of or "", {})
    loaded = [load_any(path) for path in (*own, *other)]
    values = complexities(loaded, suites.measures, judge, suites.parser or PARSER)
    compared = compare_suites(
        systems, (domain, list(sides[0])), (general, list(sides[1])), values, suites.parts, suites.error_of
    )
    return result, compared


def _named(paths: Sequence[Path]) -> dict[str, str]:
    """Names of tasks -> their kinds; the tasks themselves are not kept in memory."""
    return {task.name: task.kind for task in map(load_any, paths)}


def _require_measures(suites: SuiteOptions) -> None:
    """What a measure lacks is told before anything is computed."""
    if unknown := [name for name in suites.measures if name not in MEASURES]:
        raise UserError(f"unknown measure {unknown[0]!r}; known are {', '.join(MEASURES)}")
    if "error" in suites.measures and not suites.error_of:
        raise UserError("the measure error needs the system whose errors count: name it with error_of")
    if suites.error_of and "error" not in suites.measures:
        raise UserError("error_of is for the measure error, which measures does not name")
    if suites.parser and "dependency" not in suites.measures:
        raise UserError("parser is for the measure dependency, which measures does not name")
    if "dependency" in suites.measures:
        dependency(suites.parser or PARSER)


def _require_comparable(
    suites: tuple[str, str], sides: Sequence[set[str]], systems: Sequence[str], judge: str | None
) -> None:
    """What the comparison would refuse is told before hours of evaluation.

    Args:
        sides: the kinds of the tasks of both suites.
        judge: the system whose errors count.
    """
    ranked_alone = all(name == BM25 for name in systems)
    shared = {kind for kind in sides[0] & sides[1] if not ranked_alone or kind in RANKINGS}
    if not shared:
        raise UserError(no_shared_kind(*suites))
    if judge is None:
        return
    if judge not in systems:
        raise UserError(f"error_of {judge} is none of the systems: {', '.join(systems)}")
    if not any(kind in shared and (judge != BM25 or kind in RANKINGS) for kind in ITEM_KINDS):
        raise UserError(
            f"the error of {judge} is known where single items have a score, and both suites have no kind of "
            f"task in common on which it has such scores: take another measure"
        )
    if not any(name != judge and (name != BM25 or shared <= RANKINGS) for name in systems):
        raise UserError(no_other_system(judge))
