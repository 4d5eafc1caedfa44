"""`moembed evaluate`, and `moembed.evaluate` in Python: several systems on several tasks, with baselines."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from moembed.client.model import Client
from moembed.compare.comparison import compare
from moembed.compare.scores import Scores, save_scores
from moembed.console import Interrupted
from moembed.encoding import Bar, no_bar
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import Task
from moembed.evaluation.result import Cost, EvaluatedTask, EvaluationResult, SizeScore
from moembed.evaluation.won_lost import WonLost, won_and_lost
from moembed.files import require_writable
from moembed.machine import made
from moembed.runs.evaluated import Models, given_models, load_tasks, name_systems, sample_tasks
from moembed.runs.reranked import judge_of, rerank_outcome, reranked_name
from moembed.runs.system import EvaluationOptions, Outcome, System, evaluate_system
from moembed.types import UserError

_CURVE_DRAWS = 500  # resamples for the interval of a size

ADVICE = "--keep FOLDER keeps the scores of every finished system, --cache FOLDER all vectors"


def evaluate(
    models: Models,
    tasks: str | Path | Task | Sequence[str | Path | Task],
    options: EvaluationOptions | None = None,
    bar: Bar = no_bar,
) -> EvaluationResult:
    """Score every model on every task, with 95 % intervals; each is compared to the last.

    Baselines come first, unless ``options.baselines`` is False. All that can be refused is refused before
    anything is computed.

    Args:
        models: one or several model folders, run folders, hub ids, ``minilm``, addresses of servers, or
            ``bm25``, ``static``, ``base``; or a mapping from names to them and to models in memory.
        tasks: one or several folders and files as docs/evaluating.md describes them, or tasks.
        bar: shows progress: ``bar(what, total)`` is a context that gives ``advance(count)``.

    Raises:
        UserError: a model or task that cannot be read, options that do not fit.
        Interrupted: stopped by the user (a KeyboardInterrupt); its message says what is kept.
    """
    return evaluate_with_scores(models, tasks, options, bar)[0]


def evaluate_with_scores(
    models: Models,
    tasks: str | Path | Task | Sequence[str | Path | Task],
    options: EvaluationOptions | None = None,
    bar: Bar = no_bar,
) -> tuple[EvaluationResult, dict[str, dict[str, Scores]]]:
    """``evaluate``, and the scores of every item by system and task."""
    # ---- what cannot be done is refused before anything is computed
    options = options or EvaluationOptions()
    for folder in (options.keep, options.cache):
        if folder:
            require_writable(Path(folder) / "scores.parquet")
    loaded = load_tasks(_listed(tasks), options)
    sources = name_systems(models, options.baselines, options.allow_pickle)
    reranked = {name: reranked_name(name, options) for name in given_models(models) if options.rerank}
    if options.keep:
        _require_own_files([*sources, *reranked.values()])
    judge = judge_of(options, loaded)
    if options.sample:
        loaded = sample_tasks(loaded, options.sample, sources.get("static"), options.allow_pickle)

    # ---- one system after the other; what is finished is kept at once
    outcomes: dict[str, Outcome] = {}
    unkept: list[str] = []
    try:
        for name, source in sources.items():
            outcomes[name] = evaluate_system(name, source, loaded, options, bar)
            unkept += _keep(name, outcomes[name], options)
            if judge and name in reranked:
                again = reranked[name]
                outcomes[again] = rerank_outcome(again, outcomes[name], judge, loaded, options, bar)
                unkept += _keep(again, outcomes[again], options)
        for key, option in (("wrong_tags", "wrong_tags"), ("tag", "tag (MOEMBED_TAG)")):
            if getattr(options, key) and not any(key in outcome.about for outcome in outcomes.values()):
                raise UserError(f"no model here chooses experts by a tag: leave out {option}")
        places = {"systems": _places(sources), "tasks": _task_places(_listed(tasks), loaded)}
        result = replace(summarise(outcomes, loaded), unkept=unkept or None, made=made() | places)
        return result, {name: outcome.scores for name, outcome in outcomes.items()}
    except (KeyboardInterrupt, UserError) as error:
        finished = [name for name in outcomes if name not in unkept]
        if isinstance(error, KeyboardInterrupt):
            kept = _what_is_kept(finished, options)
            raise Interrupted(kept or f"nothing is kept; {ADVICE}") from None
        kept = _what_is_kept(finished, options) if finished else ""
        raise UserError(f"{error}; {kept}" if kept else str(error)) from None


def _places(sources: Mapping[str, System]) -> dict[str, str]:
    """Where each system lies, as an absolute path or an address; BM25 and models in memory lie nowhere."""
    places = {name: str(source.resolve()) for name, source in sources.items() if isinstance(source, Path)}
    return places | {name: source.url for name, source in sources.items() if isinstance(source, Client)}


def _task_places(given: Sequence[str | Path | Task], loaded: Sequence[Task]) -> dict[str, str]:
    """Where each task lies; ``loaded`` holds those of paths first, each path once."""
    paths = dict.fromkeys(str(Path(task).resolve()) for task in given if isinstance(task, (str, Path)))
    return {task.name: path for path, task in zip(paths, loaded, strict=False)}


def _listed(given: str | Path | Task | Sequence[str | Path | Task]) -> Sequence[str | Path | Task]:
    """One thing is a list of one: a text must not be taken for its letters."""
    return given if isinstance(given, Sequence) and not isinstance(given, str) else [given]


# ---- what is kept ------------------------------------------------------------------------------------------


def _require_own_files(names: Iterable[str]) -> None:
    """Refuse two systems whose scores would go to one file, where the second would replace the first."""
    files: dict[str, str] = {}
    for name in names:
        if (other := files.setdefault(score_file(name), name)) != name:
            raise UserError(f"the scores of {other} and {name} would both be {score_file(name)}: rename one")


def score_file(system: str) -> str:
    """The name of the file in ``keep`` that holds the scores of a system."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', system).strip('-.') or 'model'}.parquet"


def _keep(name: str, outcome: Outcome, options: EvaluationOptions) -> list[str]:
    """Write the scores of a system, if asked to, and say whose could not be written.

    Where that fails, warn: the evaluation is worth more than its file.
    """
    if not outcome.scores or options.keep is None:
        return []
    about = {"system": name, **outcome.about}
    try:
        save_scores(Path(options.keep) / score_file(name), list(outcome.scores.values()), about)
    except UserError as error:
        warnings.warn(f"the scores of {name} are not kept: {error}; the evaluation goes on", stacklevel=3)
        return [name]
    return []


def _what_is_kept(finished: Sequence[str], options: EvaluationOptions) -> str:
    parts = []
    if options.keep and finished:
        parts.append(f"the scores of {', '.join(finished)} are kept in {options.keep}")
    if options.cache:
        parts.append(f"the vectors made so far are kept in {options.cache}, and the same command finds them")
    return " and ".join(parts)


# ---- the result --------------------------------------------------------------------------------------------


def summarise(
    outcomes: Mapping[str, Outcome], tasks: Sequence[Task], reference: str | None = None
) -> EvaluationResult:
    """The comparison of all systems, with what each task is and left out, and what each system cost."""
    compared = compare({name: [outcome.scores] for name, outcome in outcomes.items()}, reference)
    found = _fields(compared)
    found["tasks"] = {}
    for task in tasks:
        if task.name in compared.tasks:
            found["tasks"][task.name] = _task(
                task, _fields(compared.tasks[task.name]), outcomes, compared.reference
            )
        else:
            warnings.warn(f"no system here can be scored on {task.name}, a task of {task.kind}", stacklevel=2)
    return EvaluationResult(
        **found,
        cost={name: outcome.cost for name, outcome in outcomes.items() if outcome.cost != Cost()},
        curves={name: _curve(outcome) for name, outcome in outcomes.items() if outcome.sizes},
        routers={name: outcome.routers for name, outcome in outcomes.items() if outcome.routers},
    )


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _task(
    task: Task, cells: dict[str, Any], outcomes: Mapping[str, Outcome], reference: str
) -> EvaluatedTask:
    scored = {name: outcome for name, outcome in outcomes.items() if task.name in outcome.scores}
    scores = {name: outcome.scores[task.name] for name, outcome in scored.items()}
    noted = [note for found in scores.values() for note in found.notes]
    return EvaluatedTask(
        **cells,
        notes=[*task.notes, *dict.fromkeys(noted)],
        documents=len(task.documents) if isinstance(task, RetrievalTask) else None,
        seconds={name: outcome.seconds[task.name] for name, outcome in scored.items()},
        truncated={
            name: outcome.truncated[task.name]
            for name, outcome in scored.items()
            if task.name in outcome.truncated
        },
        queries=_queries(
            task, {name: outcome.scores[task.name] for name, outcome in scored.items()}, reference
        ),
    )


def _queries(task: Task, scores: Mapping[str, Scores], reference: str) -> dict[str, WonLost]:
    """What the reference won and lost, against every other system of a retrieval task."""
    if not isinstance(task, RetrievalTask) or reference not in scores:
        return {}
    texts = dict(zip(task.query_ids, task.queries, strict=True))
    found = {
        name: won_and_lost(texts, scores[reference], other)
        for name, other in scores.items()
        if name != reference
    }
    return {name: queries for name, queries in found.items() if queries}


def _curve(outcome: Outcome) -> list[SizeScore]:
    seen = compare({str(size): [scores] for size, scores in outcome.sizes.items()}, draws=_CURVE_DRAWS)
    return [
        SizeScore(*size, outcome.size_bytes[size], seen.overall.metrics[str(size)]["score"])
        for size in outcome.sizes
    ]
