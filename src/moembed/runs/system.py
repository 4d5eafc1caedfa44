"""One system on all tasks of an evaluation: its scores, in full and as smaller vectors, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moembed.client.model import Client
from moembed.compare.scores import Scores
from moembed.embedder import Embedder
from moembed.encoding import Bar, TextEncoder
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import PairTask, Task
from moembed.evaluation.result import Cost, Routers
from moembed.evaluation.routing import routing
from moembed.evaluation.static import StaticEncoder
from moembed.evaluation.systems import CachedEncoder, CachedVectors, MeasuredEncoder, PromptedCopies
from moembed.evaluation.tagged import served_tagged, tagged
from moembed.evaluation.tasks import evaluate, evaluate_bm25
from moembed.folder.bases import locate_base
from moembed.folder.modules import is_composed, is_static
from moembed.inference.static import StaticEmbedder
from moembed.machine import best_dtype
from moembed.replicas import Replicas
from moembed.reranker import Reranker
from moembed.runs.bench import forget_peak, resident_memory
from moembed.search.composed import read_composed
from moembed.types import UserError

Size = tuple[int, str]  # coordinates kept, codec
System = Path | Embedder | Client | None  # a model folder, a model in memory or on a server, or BM25


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """How every system is evaluated.

    Attributes:
        metrics: of each kind of task those that measure it; None: see `moembed.evaluation.tasks`.
        sample: queries of every retrieval task, with hard and relevant documents; None: all.
        dims, codecs: also as vectors of so many coordinates, stored so; each is combined with each.
        baselines: BM25, static word vectors and the base of the first run are evaluated beside.
        dtype: float32, bfloat16 or auto.
        processes: embed in so many; the GPUs, or the cores, are dealt out to them.
        cache: folder that keeps all vectors for the next evaluation.
        keep: folder for the scores of every item, a file a system, for ``moembed compare``.
        allow_pickle: read pytorch_model.bin where there is no safetensors file.
        rerank: a cross-encoder that orders the best ``candidates`` documents of every model that is named: a
            system of its own beside it.
        tag: of all texts, for models that choose experts by it; None: each task says its language.
        wrong_tags: share of the texts that models with experts by language are told a wrong one of.
    """

    metrics: tuple[str, ...] | None = None
    sample: int | None = None
    dims: tuple[int, ...] = ()
    codecs: tuple[str, ...] = ()
    baselines: bool = True
    dtype: str = "auto"
    processes: int = 1
    cache: str | Path | None = None
    keep: str | Path | None = None
    allow_pickle: bool = False
    tag: str | None = None
    wrong_tags: float = 0.0
    rerank: str | Path | Reranker | None = None
    candidates: int = 50

    def __post_init__(self) -> None:
        for name in ("metrics", "dims", "codecs"):
            value = getattr(self, name)
            if isinstance(value, (str, int)):
                raise UserError(f"{name} is a list, as in {name}=({value!r},), also where there is one")
        if self.processes < 1 or self.candidates < 1 or (self.sample is not None and self.sample < 1):
            raise UserError("processes, candidates and sample are at least 1")
        if not 0 <= self.wrong_tags <= 1:
            raise UserError(f"wrong_tags {self.wrong_tags} is a share, between 0 and 1")
        if self.wrong_tags and self.cache:
            raise UserError("the cache has vectors of the right tags: leave out cache or wrong_tags")


@dataclass(slots=True)
class Outcome:
    """What one system scored by task, in full and in every smaller size, and what that took."""

    scores: dict[str, Scores] = field(default_factory=dict)
    sizes: dict[Size, dict[str, Scores]] = field(default_factory=dict)
    size_bytes: dict[Size, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    routers: Routers = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def evaluate_system(
    name: str, source: System, tasks: Sequence[Task], options: EvaluationOptions, bar: Bar
) -> Outcome:
    """One system on all tasks; of what it cannot do (BM25 on sentence pairs) there are no scores.

    Raises:
        UserError: a model that cannot be read, a metric nobody knows, a codec or dim the vectors do not have.
    """
    if source is None:
        return _bm25(tasks, options)
    if isinstance(source, Client):
        return _served(source, name, tasks, options, bar)
    forget_peak()
    dtype = best_dtype() if options.dtype == "auto" else options.dtype
    model = source
    if isinstance(model, Path) and is_static(model):
        return _static(model, name, tasks, options, bar)
    if isinstance(model, Path) and is_composed(model):
        return _composed(model, name, tasks, replace(options, dtype=dtype), bar)
    if isinstance(model, Path):
        model = Embedder.from_pretrained(model, dtype=dtype, allow_pickle=options.allow_pickle)
    if name != "static" and model.per_token:
        _require_plain(options)
        tasks = [task for task in tasks if isinstance(task, RetrievalTask)] or tasks  # it ranks documents
    if name == "static":
        return evaluate_encoder(StaticEncoder(model), name, tasks, replace(options, dims=(), codecs=()), bar)
    with _told_tag([model], options) as told:
        with _computing(model, source, dtype, options) as encoder:
            if options.cache:
                encoder = CachedEncoder(model, Path(options.cache), encoder)
            outcome = evaluate_encoder(encoder, name, tasks, options, bar, [model])
        outcome.about = {"space_id": model.space(role="document"), "dtype": dtype, **told}
        outcome.routers = routing(model, tasks)
    outcome.cost = replace(
        outcome.cost,
        parameters=model.num_parameters(),
        active_parameters=model.num_parameters(active=True),
        peak_memory_bytes=resident_memory(peak=True) or None,
    )
    return outcome


@contextmanager
def _told_tag(models: Sequence[Embedder | Client], options: EvaluationOptions) -> Iterator[dict[str, Any]]:
    """While models are evaluated, those that choose experts by tag are told ``options.tag``.

    Yields:
        what a result says of tags; nothing, where no model knows any.
    """
    by_tag = [model for model in models if (model.info.tags if isinstance(model, Client) else model.tags)]
    told = {key: value for key in ("tag", "wrong_tags") if by_tag and (value := getattr(options, key))}
    before = [model.tag for model in by_tag]
    for model in by_tag:
        model.tag = options.tag or model.tag
    try:
        yield told
    finally:
        for model, tag in zip(by_tag, before, strict=True):
            model.tag = tag


def _require_plain(options: EvaluationOptions) -> None:
    """Of a model that makes a vector of every token: refuse what needs one vector of a text."""
    names = ("cache", "dims", "codecs")
    asked = [name for name in names if getattr(options, name)] + ["processes"] * (options.processes > 1)
    if asked:
        raise UserError(
            f"{asked[0]} is for models of one vector, and this one makes a vector of every token (pooling "
            f"'tokens'): leave {asked[0]} out"
        )


@contextmanager
def _computing(
    model: Embedder, source: System, dtype: str, options: EvaluationOptions
) -> Iterator[TextEncoder]:
    if options.processes == 1:
        yield model
        return
    if not isinstance(source, Path):
        raise UserError(
            "a model in memory is evaluated in this process: give its folder, or leave out processes"
        )
    if model.tags is not None and (model.tag is not None or not model.tags.by_role):
        raise UserError(
            "the experts of this model are chosen by a tag, or the language of a task, which other processes "
            "are not told: leave out processes"
        )
    settings = {"dtype": dtype, "allow_pickle": options.allow_pickle}
    with Replicas(source, options.processes, settings) as copies:
        yield PromptedCopies(model, copies)


def _static(folder: Path, name: str, tasks: Sequence[Task], options: EvaluationOptions, bar: Bar) -> Outcome:
    """A folder of static word vectors: it is not the baseline of that name, which is made of a model."""
    table = StaticEmbedder.from_pretrained(folder)
    outcome = evaluate_encoder(table, name, tasks, options, bar)
    count = table.num_parameters()
    outcome.cost = replace(outcome.cost, parameters=count, active_parameters=count)
    outcome.about = {"space_id": table.space(role="document"), "dtype": "float32"}
    return outcome


def _composed(
    folder: Path, name: str, tasks: Sequence[Task], options: EvaluationOptions, bar: Bar
) -> Outcome:
    """Vectors made of those of other models, which compute in this process; each may have a cache."""
    if options.processes > 1:
        raise UserError(f"{name} is made of other models, which compute in this process: leave out processes")

    def opened(part: str) -> TextEncoder:
        place = locate_base(part, allow_pickle=options.allow_pickle)
        if is_static(place):
            return StaticEmbedder.from_pretrained(place)
        return Embedder.from_pretrained(place, dtype=options.dtype, allow_pickle=options.allow_pickle)

    encoder = read_composed(folder, opened)
    models = [one for one in encoder.encoders if isinstance(one, Embedder)]
    tables = [one for one in encoder.encoders if isinstance(one, StaticEmbedder)]
    count = encoder.num_parameters() + sum(model.num_parameters() for model in models)
    count += sum(table.num_parameters() for table in tables)
    if options.cache:
        encoder.encoders = [
            CachedEncoder(one, Path(options.cache)) if isinstance(one, Embedder) else one
            for one in encoder.encoders
        ]
    with _told_tag(models, options) as told:
        outcome = evaluate_encoder(encoder, name, tasks, options, bar, models)
        outcome.about = {"space_id": encoder.space(role="document"), "dtype": options.dtype, **told}
    outcome.cost = replace(outcome.cost, parameters=count)
    return outcome


def _served(model: Client, name: str, tasks: Sequence[Task], options: EvaluationOptions, bar: Bar) -> Outcome:
    """A model that another process serves: what it costs in memory and what its routers do, is not told."""
    if options.processes > 1:
        raise UserError(f"{name} is computed by its server: leave out processes")
    if options.dtype not in ("auto", model.dtype):
        raise UserError(
            f"{name} serves {model.dtype}: leave out dtype, or start it with --dtype {options.dtype}"
        )
    encoder = CachedEncoder(model, Path(options.cache)) if options.cache else model
    with _told_tag([model], options) as told:
        outcome = evaluate_encoder(encoder, name, tasks, options, bar, [model])
        outcome.about = {"space_id": model.space(role="document"), "dtype": model.dtype, **told}
    info = model.info
    outcome.cost = replace(outcome.cost, parameters=info.parameters, active_parameters=info.active_parameters)
    return outcome


def _bm25(tasks: Sequence[Task], options: EvaluationOptions) -> Outcome:
    outcome = Outcome()
    for task in tasks:
        start = time.perf_counter()
        scores = evaluate_bm25(task, options.metrics)
        if scores:
            outcome.scores[task.name] = scores
            outcome.seconds[task.name] = time.perf_counter() - start
    return outcome


def evaluate_encoder(
    encoder: TextEncoder,
    name: str,
    tasks: Sequence[Task],
    options: EvaluationOptions,
    bar: Bar,
    models: Sequence[Embedder | Client] = (),
) -> Outcome:
    """What the vectors of an encoder score on all tasks, and in every size that ``options`` asks for.

    Args:
        models: what compute the vectors; they are told the language of each task.
    """
    if wrong := [dim for dim in options.dims if not 0 < dim <= encoder.dim]:
        raise UserError(f"dim {wrong[0]} is not between 1 and the {encoder.dim} coordinates of {name}")
    measured = encoder if isinstance(encoder, MeasuredEncoder) else MeasuredEncoder(encoder)
    outcome = Outcome()
    for task in tasks:  # one whose tags a model does not know is refused before any is embedded
        with _in_language_of(task, models, options.wrong_tags):
            pass
    with bar(name, sum(map(num_texts, tasks))) as advance:
        for task in tasks:
            cut, start = measured.truncated, time.perf_counter()
            known = CachedVectors(measured)
            with _in_language_of(task, models, options.wrong_tags):
                outcome.scores[task.name] = evaluate(task, known, options.metrics, progress=advance)
            outcome.seconds[task.name] = time.perf_counter() - start
            outcome.truncated[task.name] = measured.truncated - cut
            for dim in options.dims or (encoder.dim,) * bool(options.codecs):
                for codec in options.codecs or ("float32",):
                    smaller = known.smaller(codec, dim)
                    scores = evaluate(task, smaller, options.metrics)
                    outcome.sizes.setdefault((dim, codec), {})[task.name] = scores
                    outcome.size_bytes[dim, codec] = smaller.bytes_per_vector
    speed = measured.texts / measured.seconds if measured.texts else None  # all may come from the cache
    outcome.cost = Cost(bytes_per_vector=4 * encoder.dim, texts_per_second=speed)
    return outcome


@contextmanager
def _in_language_of(task: Task, models: Sequence[Embedder | Client], wrong_tags: float) -> Iterator[None]:
    with ExitStack() as told:
        for model in models:
            if not isinstance(model, Client):
                told.enter_context(tagged(model, task, wrong_tags))
            elif wrong_tags:
                raise UserError(
                    "wrong_tags is for models of this process: name a model's folder, not its server"
                )
            else:
                told.enter_context(served_tagged(model, task))
        yield


def num_texts(task: Task) -> int:
    """How many texts of a task are embedded, at most."""
    if isinstance(task, RetrievalTask):
        return len(task.queries) + len(task.documents)
    if isinstance(task, PairTask):
        return len({*task.sentence1, *task.sentence2})
    return len(task.texts)
