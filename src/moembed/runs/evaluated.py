"""What `moembed evaluate` is given as what it works on: tasks, maybe samples of them, and systems by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from moembed.client.connection import is_url
from moembed.client.model import Client
from moembed.compare.scores import MAIN, Scores
from moembed.embedder import Embedder
from moembed.encoding import TextEncoder
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import Task, load_any
from moembed.evaluation.sample import agreement, sample
from moembed.evaluation.static import StaticEncoder
from moembed.evaluation.tasks import evaluate, evaluate_bm25, metrics_of
from moembed.folder.bases import locate_base
from moembed.folder.modules import is_composed, is_static
from moembed.runs.system import EvaluationOptions, System
from moembed.search.codecs import codec_kind
from moembed.types import UserError

BASELINES = ("bm25", "static", "base")

Models = str | Path | Sequence[str | Path] | Mapping[str, str | Path | Embedder | Client]


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


def given_models(models: Models) -> Mapping[str, str | Path | Embedder | Client]:
    """Name -> model, of those that were asked for."""
    if isinstance(models, (str, Path)):
        models = [models]
    return models if isinstance(models, Mapping) else {str(name): name for name in models}


def name_systems(models: Models, baselines: bool, allow_pickle: bool = False) -> dict[str, System]:
    """Name -> model folder or model (of BM25 none), in the order of the table; baselines nobody named first.

    ``base`` is what the first of the models that tells was trained from, ``static`` the word vectors of it,
    or else of the first model.

    Raises:
        UserError: no such model; ``base`` or ``static`` is asked for, and no model tells; a model is called
            as a baseline is.
    """
    given = given_models(models)
    if other := [name for name in BASELINES if name in given and str(given[name]) != name]:
        raise UserError(f"{other[0]!r} is what a baseline is called: give your model another name")
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
    except (OSError, UserError, AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return None


def sample_tasks(
    tasks: Sequence[Task], queries: int, static: System, allow_pickle: bool = False
) -> list[Task]:
    """Tasks of retrieval with fewer queries; a note tells how well each sample ranks.

    That is measured by systems that cost little: BM25, and the word vectors of ``static``.
    """
    if isinstance(static, Path):
        static = Embedder.from_pretrained(static, allow_pickle=allow_pickle)
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
    scores = {"bm25": evaluate_bm25(task), "static": evaluate(task, static) if static else None}
    return {name: found for name, found in scores.items() if found}
