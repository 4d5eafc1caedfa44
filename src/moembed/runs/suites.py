"""`moembed evaluate --suite … --against …`: one evaluation of the tasks of two suites, and what sets them
apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from moembed.compare.scores import Scores, load_scores
from moembed.encoding import Bar, no_bar
from moembed.evaluation.complexity import MEASURES, PARSER, complexities, dependency
from moembed.evaluation.domain import DomainComparison, compare_suites
from moembed.evaluation.files import load_any
from moembed.evaluation.result import EvaluationResult
from moembed.evaluation.suite import load_suite
from moembed.runs.evaluate import BASELINES, Models, evaluate
from moembed.runs.system import EvaluationOptions
from moembed.types import UserError


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """What two suites are compared by.

    Attributes:
        measures: of complexity, see `moembed.evaluation.complexity`.
        parser: a model of spaCy, for the measure ``dependency``.
        error_of: a system of the evaluation, for the measure ``error``; it is not compared there.
        parts: into how many parts the items are cut.
    """

    measures: tuple[str, ...] = ("readability", "entropy")
    parser: str = PARSER
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
    given = [models] if isinstance(models, (str, Path)) else list(models)
    known = dict.fromkeys([*map(str, given), *(BASELINES if options.baselines else ())])
    if suites.error_of and suites.error_of not in known:
        raise UserError(f"error_of {suites.error_of} is none of the systems: {', '.join(known)}")
    with TemporaryDirectory() as scratch:
        folder = Path(options.keep) if options.keep else Path(scratch)
        result = evaluate(models, [*own, *other], replace(options, keep=folder), bar)
        systems = _kept(folder, result.systems)
    names = [[load_any(path).name for path in paths] for paths in (own, other)]
    judge = systems.get(suites.error_of or "", {})
    values = complexities([load_any(path) for path in (*own, *other)], suites.measures, judge, suites.parser)
    compared = compare_suites(
        systems, (domain, names[0]), (general, names[1]), values, suites.parts, suites.error_of
    )
    return result, compared


def _require_measures(suites: SuiteOptions) -> None:
    """What a measure lacks is told before anything is computed."""
    if unknown := [name for name in suites.measures if name not in MEASURES]:
        raise UserError(f"unknown measure {unknown[0]!r}; known are {', '.join(MEASURES)}")
    if "error" in suites.measures and not suites.error_of:
        raise UserError("the measure error needs the system whose errors count: name it with error_of")
    if suites.error_of and "error" not in suites.measures:
        raise UserError("error_of is for the measure error, which measures does not name")
    if "dependency" in suites.measures:
        dependency(suites.parser)


def _kept(folder: Path, systems: Sequence[str]) -> dict[str, dict[str, Scores]]:
    """The scores of every item, by system and task, of the files of this evaluation."""
    found: dict[str, dict[str, Scores]] = {}
    for file in sorted(folder.glob("*.parquet")):
        scores, about = load_scores(file)
        if about.get("system") in systems:
            found[about["system"]] = {one.task: one for one in scores}
    return {name: found[name] for name in systems if name in found}
