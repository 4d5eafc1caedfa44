"""An evaluation: systems one after the other on all tasks, baselines before them, and what each cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from moembed.compare.comparison import compare
from moembed.compare.scores import MAIN, Scores
from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import PairTask, Task
from moembed.evaluation.sample import Agreement, agreement, sample
from moembed.evaluation.static import StaticEncoder
from moembed.evaluation.systems import Advance, EncodeCounted, ModelEncoder, Remembered
from moembed.evaluation.tasks import Encode, evaluate, evaluate_bm25
from moembed.folder.bases import locate_base
from moembed.machine import best_dtype
from moembed.packing import pack, token_budget
from moembed.replicas import Replicas
from moembed.runs.bench import forget_peak, resident_memory
from moembed.types import RouterStats, UserError

BASELINES = ("bm25", "static", "base")
_ROUTED = 64  # texts of a language whose routing is looked at
_TOKENS = 8192  # of them, computed at a time
_CURVE_DRAWS = 500  # resamples for the interval of a point

Bar = Callable[[str, int], AbstractContextManager[Advance]]
View = tuple[int, str]  # coordinates kept, codec


@dataclass(frozen=True, slots=True)
class Options:
    """How every system is evaluated; each of ``dims`` is combined with each of ``codecs``."""

    metrics: tuple[str, ...] | None = None
    dtype: str = "auto"
    allow_pickle: bool = False
    processes: int = 1
    cache: Path | None = None
    dims: tuple[int, ...] = ()
    codecs: tuple[str, ...] = ()


@dataclass(slots=True)
class Outcome:
    """What one system scored by task, in full and as every smaller vector, and what that took."""

    scores: dict[str, Scores] = field(default_factory=dict)
    views: dict[View, dict[str, Scores]] = field(default_factory=dict)
    view_bytes: dict[View, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    routers: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


# ---- which systems -----------------------------------------------------------------------------------------


def name_systems(
    models: Sequence[str], baselines: bool, allow_pickle: bool = False
) -> dict[str, Path | None]:
    """Name -> model folder (of BM25 none), in the order of the table; baselines nobody named come first.

    ``base`` is what the first of the models that tells was trained from, ``static`` the word vectors of it,
    or else of the first model.

    Raises:
        UserError: no such model; ``base`` or ``static`` is asked for, and no model tells.
    """
    folders = {name: locate_base(name, allow_pickle=allow_pickle) for name in models if name not in BASELINES}
    base = next(filter(None, map(_base_of, folders.values())), None)
    known = {"bm25": None, "static": base or next(iter(folders.values()), None), "base": base}
    for name in ("static", "base"):
        if name in models and known[name] is None:
            raise UserError(f"{name!r} is the baseline of a model, and no other model here tells its base")
    added = [name for name in BASELINES if name == "bm25" or known[name]] if baselines else []
    if base in folders.values() and "base" in added:
        added.remove("base")
    first = [name for name in added if name not in models]
    return {name: known[name] if name in BASELINES else folders[name] for name in (*first, *models)}


def _base_of(folder: Path) -> Path | None:
    """The folder of the model that a run started from, if its recipe stands beside and the model still is."""
    try:
        recipe = yaml.safe_load((folder.parent / "recipe.yaml").read_text(encoding="utf-8"))
        return locate_base(recipe["base"], recipe.get("revision"))
    except (OSError, UserError, KeyError, TypeError, yaml.YAMLError):
        return None


# ---- one system --------------------------------------------------------------------------------------------


def evaluate_system(
    name: str, folder: Path | None, tasks: Sequence[Task], options: Options, bar: Bar
) -> Outcome:
    """One system on all tasks; of what it cannot do (BM25 on sentence pairs) there are no scores.

    Raises:
        UserError: a model that cannot be read, a metric nobody knows, a codec or dim the vectors do not have.
    """
    if folder is None:
        return _bm25(tasks, options)
    forget_peak()
    dtype = best_dtype() if options.dtype == "auto" else options.dtype
    model = Embedder.from_pretrained(folder, dtype=dtype, allow_pickle=options.allow_pickle)
    if name == "static":
        return _vectors(StaticEncoder(model), name, tasks, replace(options, dims=(), codecs=()), bar)
    with _computing(model, folder, dtype, options) as encode:
        outcome = _vectors(ModelEncoder(model, encode, options.cache), name, tasks, options, bar)
    outcome.cost |= {
        "parameters": model.num_parameters(),
        "active_parameters": model.num_parameters(active=True),
    }
    if peak := resident_memory(peak=True):
        outcome.cost["peak_memory_bytes"] = peak
    outcome.about = {"space_id": model.space_id(model.role_prompt("document")), "dtype": dtype}
    outcome.routers = routing(model, tasks)
    return outcome


@contextmanager
def _computing(model: Embedder, folder: Path, dtype: str, options: Options) -> Iterator[EncodeCounted]:
    if options.processes == 1:
        yield model.encode_counted
        return
    with Replicas(
        folder, options.processes, {"dtype": dtype, "allow_pickle": options.allow_pickle}
    ) as copies:
        yield copies.encode_counted


def _bm25(tasks: Sequence[Task], options: Options) -> Outcome:
    outcome = Outcome()
    for task in tasks:
        start = time.perf_counter()
        scores = evaluate_bm25(task, options.metrics)
        if scores:
            outcome.scores[task.name] = scores
            outcome.seconds[task.name] = time.perf_counter() - start
    return outcome


def _vectors(
    encoder: ModelEncoder | StaticEncoder, name: str, tasks: Sequence[Task], options: Options, bar: Bar
) -> Outcome:
    outcome = Outcome()
    with bar(name, sum(map(texts_of, tasks))) as advance:
        for task in tasks:
            encoder.progress, cut, start = advance, encoder.truncated, time.perf_counter()
            remembered = Remembered(encoder)
            outcome.scores[task.name] = evaluate(task, remembered, options.metrics)
            outcome.seconds[task.name] = time.perf_counter() - start
            outcome.truncated[task.name] = encoder.truncated - cut
            for dim in options.dims or (encoder.dim,) * bool(options.codecs):
                for codec in options.codecs or ("float32",):
                    seen, size = remembered.seen_as(codec, dim)
                    outcome.views.setdefault((dim, codec), {})[task.name] = evaluate(
                        task, seen, options.metrics
                    )
                    outcome.view_bytes[dim, codec] = size
    outcome.cost["bytes_per_vector"] = 4 * encoder.dim
    if encoder.texts:  # not all came from the cache
        outcome.cost["texts_per_second"] = encoder.texts / encoder.seconds
    return outcome


def texts_of(task: Task) -> int:
    """How many texts it embeds, at most."""
    if isinstance(task, RetrievalTask):
        return len(task.queries) + len(task.documents)
    if isinstance(task, PairTask):
        return len({*task.sentence1, *task.sentence2})
    return len(task.texts)


# ---- routers -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def routing(model: Embedder, tasks: Sequence[Task]) -> dict[str, dict[str, list[float]]]:
    """``[layer][language]`` -> the share of every expert, by a language's first texts; {} if dense."""
    texts: dict[str, list[str]] = {}
    for task in tasks:
        for text, language in _spoken(task):
            known = texts.setdefault(language or "unknown", [])
            if len(known) < _ROUTED:
                known.append(text)
    loads: dict[str, dict[str, list[float]]] = {}
    for language, some in texts.items():
        for stats in _routed(model, some):
            loads.setdefault(str(stats.layer), {})[language] = stats.load_E.tolist()
    return loads


def _spoken(task: Task) -> Iterator[tuple[str, str]]:
    if isinstance(task, RetrievalTask):
        for text, query in zip(task.queries, task.query_ids, strict=True):
            yield text, task.language.get(query, "")
    else:
        yield from zip(
            task.sentence1 if isinstance(task, PairTask) else task.texts, task.language, strict=True
        )


def _routed(model: Embedder, texts: Sequence[str]) -> list[RouterStats]:
    rows, _ = model.tokenizer.rows(texts)
    total: list[RouterStats] = []
    for group in token_budget([len(row) for row in rows], _TOKENS):
        found = model(pack([rows[i] for i in group]).to(model.device)).router
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    return total


# ---- all of them -------------------------------------------------------------------------------------------


def summarise(outcomes: Mapping[str, Outcome], tasks: Sequence[Task]) -> dict[str, Any]:
    """The result of ``compare``, with what each task is and left out, and what each system cost."""
    result = compare({name: [outcome.scores] for name, outcome in outcomes.items()})
    for task in tasks:
        row = result["tasks"][task.name]
        noted = [
            note for o in outcomes.values() if task.name in o.scores for note in o.scores[task.name].notes
        ]
        row["notes"] = [*task.notes, *dict.fromkeys(noted)]
        if isinstance(task, RetrievalTask):
            row["documents"] = len(task.documents)
        for key in ("seconds", "truncated"):
            found = {name: getattr(outcome, key).get(task.name) for name, outcome in outcomes.items()}
            row[key] = {name: value for name, value in found.items() if value is not None}
    result["cost"] = {name: outcome.cost for name, outcome in outcomes.items() if outcome.cost}
    result["curves"] = {name: _curve(outcome) for name, outcome in outcomes.items() if outcome.views}
    result["routers"] = {name: outcome.routers for name, outcome in outcomes.items() if outcome.routers}
    return result


def _curve(outcome: Outcome) -> list[dict[str, Any]]:
    seen = compare({str(view): [scores] for view, scores in outcome.views.items()}, draws=_CURVE_DRAWS)
    return [
        {
            "dim": dim,
            "codec": codec,
            "bytes": outcome.view_bytes[dim, codec],
            "score": seen["overall"]["metrics"][str((dim, codec))]["score"],
        }
        for dim, codec in outcome.views
    ]


# ---- samples -----------------------------------------------------------------------------------------------


def sample_tasks(
    tasks: Sequence[Task], queries: int, static: Encode | None
) -> tuple[list[Task], dict[str, Agreement]]:
    """Tasks of retrieval with fewer queries, and how well each sample ranks, by systems that cost little.

    Args:
        static: what else than BM25 is compared on the whole task and on its sample.
    """
    sampled: list[Task] = []
    agreements: dict[str, Agreement] = {}
    for task in tasks:
        if not isinstance(task, RetrievalTask) or task.kind != "retrieval":
            sampled.append(task)
            continue
        smaller = sample(task, queries)
        sampled.append(smaller)
        if smaller is not task:
            whole, part = (_cheap(some, static) for some in (task, smaller))
            agreements[task.name] = agreement(whole, part, MAIN["retrieval"])
    return sampled, agreements


def _cheap(task: Task, static: Encode | None) -> dict[str, Scores]:
    scores = {"bm25": evaluate_bm25(task), "static": evaluate(task, static) if static else None}
    return {name: found for name, found in scores.items() if found}
