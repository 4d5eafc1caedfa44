"""`moembed evaluate`, and `moembed.evaluate` in Python: several systems on several tasks, with baselines."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from moembed.client.connection import is_url
from moembed.client.model import Client
from moembed.compare.comparison import compare
from moembed.compare.scores import MAIN, Scores, save_scores
from moembed.console import Interrupted
from moembed.embedder import Embedder
from moembed.encoding import Bar, TextEncoder, no_bar
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import Task, load_any
from moembed.evaluation.result import Cost, EvaluatedTask, EvaluationResult, SizeScore
from moembed.evaluation.sample import agreement, sample
from moembed.evaluation.static import StaticEncoder
from moembed.evaluation.tasks import evaluate as evaluate_task
from moembed.evaluation.tasks import evaluate_bm25, metrics_of
from moembed.evaluation.won_lost import WonLost, won_and_lost
from moembed.files import require_writable
from moembed.folder.bases import locate_base
from moembed.folder.modules import is_composed, is_static
from moembed.machine import made
from moembed.runs.system import EvaluationOptions, Outcome, System, evaluate_system
from moembed.search.codecs import codec_kind
from moembed.types import UserError

BASELINES = ("bm25", "static", "base")
_CURVE_DRAWS = 500  # resamples for the interval of a size

ADVICE = "--keep FOLDER keeps the scores of every finished system, --cache FOLDER all vectors"

Models = str | Path | Sequence[str | Path] | Mapping[str, str | Path | Embedder | Client]


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
    # ---- what cannot be done is refused before anything is computed
    options = options or EvaluationOptions()
    for folder in (options.keep, options.cache):
        if folder:
            require_writable(Path(folder) / "scores.parquet")
    loaded = load_tasks(_listed(tasks), options)
    sources = name_systems(models, options.baselines, options.allow_pickle)
    if options.keep:
        _require_own_files(sources)
    if options.sample:
        loaded = sample_tasks(loaded, options.sample, sources.get("static"))

    # ---- one system after the other; what is finished is kept at once
    outcomes: dict[str, Outcome] = {}
    unkept: list[str] = []
    try:
        for name, source in sources.items():
            outcomes[name] = evaluate_system(name, source, loaded, options, bar)
            if options.keep and not _keep(Path(options.keep), name, outcomes[name]):
                unkept.append(name)
        if options.wrong_tags and not any("wrong_tags" in outcome.about for outcome in outcomes.values()):
            raise UserError("no model here chooses experts by a tag: leave out wrong_tags")
        places = {"systems": _places(sources), "tasks": _task_places(_listed(tasks), loaded)}
        return replace(summarise(outcomes, loaded), unkept=unkept or None, made=made() | places)
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


# ---- what is evaluated -------------------------------------------------------------------------------------


def load_tasks(tasks: Sequence[str | Path | Task], options: EvaluationOptions) -> list[Task]:
    """The tasks, and everything about them and the options that can be refused before a model is loaded.

    The same path twice counts once.
    """
    paths = {Path(task).resolve(): task for task in tasks if isinstance(task, (str, Path))}
    loaded = [load_any(path) for path in paths]
    loaded += [task for task in tasks if not isinstance(task, (str, Path))]
    if not loaded:
        raise UserError("there is no task to evaluate on: give folders or files of tasks")
    if len({task.name for task in loaded}) < len(loaded):
        raise UserError("two tasks have the same name, which results go by: rename one of them")
    for task in loaded:
        metrics_of(task.kind, options.metrics)
    for codec in options.codecs:
        codec_kind(codec)
    return loaded


def name_systems(models: Models, baselines: bool, allow_pickle: bool = False) -> dict[str, System]:
    """Name -> model folder or model (of BM25 none), in the order of the table; baselines nobody named first.

    ``base`` is what the first of the models that tells was trained from, ``static`` the word vectors of it,
    or else of the first model.

    Raises:
        UserError: no such model; ``base`` or ``static`` is asked for, and no model tells.
    """
    if isinstance(models, (str, Path)):
        models = [models]
    given = models if isinstance(models, Mapping) else {str(name): name for name in models}
    sources: dict[str, System] = {
        name: _system(model, allow_pickle) for name, model in given.items() if name not in BASELINES
    }
    base = next(filter(None, map(_base_of, sources.values())), None)
    with_layers = filter(_has_layers, sources.values())
    known: dict[str, System] = {"bm25": None, "static": base or next(with_layers, None)}
    known["base"] = base
    for name in ("static", "base"):
        if name in given and known[name] is None:
            raise UserError(f"{name!r} is the baseline of a model, and no other model here tells its base")
    added = [name for name in BASELINES if name == "bm25" or known[name]] if baselines else []
    if "base" in added and any(source == base for source in sources.values() if isinstance(source, Path)):
        added.remove("base")
    first = [name for name in added if name not in given]
    return {name: known[name] if name in BASELINES else sources[name] for name in (*first, *given)}


def _has_layers(source: System) -> bool:
    """Whether it is a model of this process with word vectors and layers."""
    if isinstance(source, Path):
        return not (is_static(source) or is_composed(source))
    return not isinstance(source, Client)


def _system(model: str | Path | Embedder | Client, allow_pickle: bool) -> System:
    if isinstance(model, (Embedder, Client)):
        return model
    return Client(str(model)) if is_url(str(model)) else locate_base(str(model), allow_pickle=allow_pickle)


def _base_of(source: System) -> Path | None:
    """The folder of the model that a run started from, if its recipe stands beside and the model still is."""
    if not isinstance(source, Path):
        return None
    try:
        recipe = yaml.safe_load((source.parent / "recipe.yaml").read_text(encoding="utf-8"))
        return locate_base(recipe["base"], recipe.get("revision"))
    except (OSError, UserError, KeyError, TypeError, yaml.YAMLError):
        return None


def sample_tasks(tasks: Sequence[Task], queries: int, static: System) -> list[Task]:
    """Tasks of retrieval with fewer queries; a note tells how well each sample ranks.

    That is measured by systems that cost little: BM25, and the word vectors of ``static``.
    """
    if isinstance(static, Path):
        static = Embedder.from_pretrained(static)
    encoder = StaticEncoder(static) if isinstance(static, Embedder) else None
    sampled: list[Task] = []
    for task in tasks:
        smaller: Task = task
        if isinstance(task, RetrievalTask) and task.kind == "retrieval":
            smaller = sample(task, queries)
            if smaller is not task:
                whole, part = (_cheap(some, encoder) for some in (task, smaller))
                told = f"sampled: {agreement(whole, part, MAIN['retrieval'])}"
                smaller = replace(smaller, notes=[*smaller.notes, told])
        sampled.append(smaller)
    return sampled


def _cheap(task: Task, static: TextEncoder | None) -> dict[str, Scores]:
    scores = {"bm25": evaluate_bm25(task), "static": evaluate_task(task, static) if static else None}
    return {name: found for name, found in scores.items() if found}


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


def _keep(folder: Path, name: str, outcome: Outcome) -> bool:
    """Write the scores of a system; where that fails, warn: the evaluation is worth more than its file."""
    if not outcome.scores:
        return True
    about = {"system": name, **outcome.about}
    try:
        save_scores(folder / score_file(name), list(outcome.scores.values()), about)
    except UserError as error:
        warnings.warn(f"the scores of {name} are not kept: {error}; the evaluation goes on", stacklevel=3)
        return False
    return True


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
