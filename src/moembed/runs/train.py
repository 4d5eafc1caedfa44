"""A training run: which base, which data, whether to upcycle, and how to train. `train` carries it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from moembed.config import config_hash
from moembed.console import progress_bar, say
from moembed.data.provenance import credit
from moembed.data.sampler import SamplingConfig, mix
from moembed.data.sources import Source, SourceConfig, load_source
from moembed.embedder import Embedder
from moembed.encoding import View
from moembed.evaluation.beir import RetrievalTask
from moembed.files import locked
from moembed.folder.bases import base_name, read_base
from moembed.folder.parts import Parts
from moembed.inference.member import member
from moembed.model.words.compressors import COMPRESSORS
from moembed.model.words.table import WordTable
from moembed.report.card import write_card
from moembed.report.training.page import write_report
from moembed.runs.inputs import require_new_run
from moembed.runs.train_sources import TrainSource, docstring_source, each_source
from moembed.runs.training_run import load_run, make_run_folder, model_facts, resolve_run, tell_sources
from moembed.training.contrastive.sample import sample_batch
from moembed.training.contrastive.settings import ContrastiveConfig, fit_lengths
from moembed.training.contrastive.task import Mixture, num_train_rows
from moembed.training.contrastive.task_types import fixed_share
from moembed.training.contrastive.train import train_contrastive
from moembed.training.monitors.retrieval import load_tasks
from moembed.training.parallel import World, joined
from moembed.types import UserError
from moembed.weights.compress_vocabulary import VocabularyConfig, compress_vocabulary
from moembed.weights.expert_head import ExpertHeadConfig, add_expert_head
from moembed.weights.pooling import PoolingOptions, change_pooling, look
from moembed.weights.precision import in_float32
from moembed.weights.selection_bias import add_selection_bias
from moembed.weights.upcycle import UpcycleConfig, upcycle
from moembed.weights.widen import WidenConfig, widen


class TrainConfig(ContrastiveConfig):
    """``data`` is a file name, a list of them, or a list of sources with columns and weights; the name
    ``docstrings`` means the built-in pairs of `moembed.data.docstrings`. ``sampling`` lets their sizes count,
    ``retrieval_share`` is the share of batches of retrieval among those of all tasks.
    ``validation`` names sources, in the same forms, for the held-out loss alone. An entry with ``each``, a
    list of words, stands for as many sources: every ``{}`` in it becomes the word. ``small_sources`` says
    what becomes of a source with fewer pairs than a batch.

    ``revision`` is the branch, tag or commit of a base from the hub; ``allow_pickle`` reads a base that has
    no safetensors. ``layers`` keeps so many of its layers, the first ones; ``widen`` makes its feed-forward
    blocks wider; ``vocabulary`` puts its table of words into a smaller form; ``upcycle`` None leaves it
    dense; ``head`` puts a block of experts behind pooling. ``pooling`` replaces the model's own, by a name
    or with options; ``attention`` says whether a token sees those behind it. ``prompts`` become part of the
    model.
    """

    base: str = "minilm"
    revision: str | None = None
    allow_pickle: bool = False
    out: str
    data: tuple[TrainSource, ...] = Field(min_length=1)
    validation: tuple[SourceConfig, ...] = ()
    small_sources: Literal["refuse", "skip"] = "refuse"
    sampling: SamplingConfig = SamplingConfig()
    retrieval_share: float | None = Field(default=None, gt=0, lt=1)
    layers: int | None = Field(default=None, ge=1)
    widen: WidenConfig | None = None
    vocabulary: VocabularyConfig | None = None
    upcycle: UpcycleConfig | None = None
    head: ExpertHeadConfig | None = None
    pooling: PoolingOptions | None = None
    attention: Literal["causal", "bidirectional"] | None = None
    prompts: dict[str, str] | None = None

    @field_validator("pooling", mode="before")
    @classmethod
    def _pooling_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _of_vectors(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("task") == "reranking":
            raise ValueError("task reranking is trained by moembed.train_reranker, not by moembed.train")
        if isinstance(values, dict) and values.get("stages") is not None:
            raise ValueError(
                "a recipe with stages is for the command moembed train and for moembed.train_stages; here, "
                "as in a cell of an experiment, a recipe has one stage"
            )
        return {k: v for k, v in values.items() if k != "stages"} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _words_that_learn(self) -> TrainConfig:
        if self.lora and self.vocabulary and COMPRESSORS[self.vocabulary.method].by_training:
            raise ValueError(
                f"vocabulary.method {self.vocabulary.method} has to be trained, and with lora the table of "
                "words stays as it is: leave lora out, or choose a method that needs no training"
            )
        return self

    @field_validator("validation")
    @classmethod
    def _of_retrieval(cls, value: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        if any(source.score or source.label or source.scores for source in value):
            raise ValueError("sources for validation are pairs of retrieval: hold others out with held_out")
        return value

    @field_validator("data", "validation", mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        values = value if isinstance(value, (list, tuple)) else [value]
        return [
            source
            for item in values
            for source in each_source({"path": item} if isinstance(item, str) else item)
        ]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run leaves.

    Attributes:
        run: the run folder: metrics, checkpoints, report.
        model: the folder of the trained model.
        recipe: hash of the resolved config.
        seconds: that training took, those before an interruption included.
        truncated: texts that were cut.
        stopped_by_user: whether Ctrl-C or SIGTERM ended it early.
    """

    run: str
    model: str
    recipe: str
    steps: int
    seconds: float
    pairs: int
    truncated: int
    stopped_by_user: bool


def load_recipe(path: Path, overrides: Sequence[str]) -> TrainConfig:
    """Read a recipe; ``steps``, ``epochs`` or ``minutes`` among the overrides replaces the file's."""
    return load_run(TrainConfig, path, overrides)


def train(
    config: TrainConfig | Mapping[str, Any] | str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    **overrides: Any,
) -> TrainResult:
    """Train an embedder on pairs, as ``moembed train`` does; in each process that ``torchrun`` started.

    >>> train("recipes/finetune.yaml", data="pairs.jsonl", out="runs/mine", steps=200)    # doctest: +SKIP

    Args:
        config: a `TrainConfig`, a mapping with the same keys, or a YAML file.
        resume: go on from the newest checkpoint of ``out``.
        overwrite: replace the run folder ``out`` if it exists.
        overrides: keys that replace those of ``config``, nested ones dotted, as in
            ``**{"optim.learning_rate": 1e-4}``. Each of ``steps``, ``epochs`` and ``minutes`` replaces
            whichever of them ``config`` has.

    Raises:
        UserError: anything wrong with the base or the data, or a run folder that already exists.
    """
    resolved = resolve_run(TrainConfig, config, overrides)
    with joined() as world, locked(Path(resolved.out)) if world.first else nullcontext():
        return _run(resolved, resume, overwrite, world)


def _run(config: TrainConfig, resume: bool, overwrite: bool, world: World) -> TrainResult:
    run = Path(config.out)
    tell = say if world.first else lambda text: None
    if resume and not run.is_dir():
        raise UserError(f"{run} does not exist, so there is nothing to resume")

    # ---- the data and the model; the first process fills the caches, the others read them
    with world.first_ahead():
        if world.first and not resume:
            require_new_run(run, config, overwrite)
        ready = prepared(config, tell)
    config, model = ready.config, ready.model
    tell(model_facts(model, config, config.precision, world))

    # ---- training, and what is made of it; the run folder is made when nothing was wrong so far
    paths = [source.path for source in config.data]
    folder = None if resume else partial(make_run_folder, run, config, config.base, paths, overwrite)
    trained = train_contrastive(config, model, ready.mixture, run, resume, config, ready.tasks, folder)
    result = TrainResult(str(run), str(run / "model"), config_hash(config), **asdict(trained))
    if world.first:
        _finish(config, result)
    return result


@dataclass(frozen=True, slots=True)
class Ready:
    """A run before its first step: the recipe as it will be run, and what it names, read and built."""

    config: TrainConfig
    mixture: Mixture
    model: Embedder
    tasks: list[RetrievalTask]


def prepared(config: TrainConfig, tell: Callable[[str], object]) -> Ready:
    """Read the data and build the model of a recipe; what is to be known of them is told."""
    mixture = open_mixture(config)
    if left_out := len(config.data) - len(mixture.sources):
        tell(f"{left_out} sources have fewer pairs than a batch and are left out")
    tell_sources([*mixture.sources, *mixture.validation], tell)
    tasks = load_tasks(config.evaluate)
    for task in tasks:
        for note in task.notes:
            tell(f"note: {task.name}: {note}")
    # ---- the model, and the lengths that suit both
    model = build(read_base(config.base, config.revision, config.allow_pickle), config, mixture)
    if isinstance(words := model.encoder.word, WordTable):
        whole = 4 * words.rows * words.width
        learns = "with lora it stays as it is" if config.lora else "its floats learn, its codes, if any, stay"
        tell(
            f"the table of words is compressed ({words.method}): {words.num_bytes:,} bytes of {whole:,} in "
            f"float32; {learns}"
        )
    positions, limit = model.encoder.spec.max_length, model.tokenizer.max_length
    config, model.tokenizer.max_length, notes = fit_lengths(config, positions, limit)
    for note in notes:
        tell(note)
    return Ready(config, mixture, model, tasks)


def _finish(config: TrainConfig, result: TrainResult) -> None:
    """The card, the report, and what to say at the end."""
    run, model = Path(result.run), Path(result.model)
    data = [credit(source) for source in config.data]
    write_card(model, result.model, base_name(config.base), data)
    say(
        f"{result.steps} steps, {result.pairs:,} pairs in {result.seconds:.0f} s; "
        f"{result.truncated:,} texts were cut; the model is in {result.model}"
    )
    try:
        say(f"the report is in {write_report(run, f'moembed train: {run.name}')}")
    except UserError as error:  # no matplotlib, or no step was made
        say(f"no report: {error}")
    if result.stopped_by_user:
        say(f"stopped early; resume with: moembed train {run / 'recipe.yaml'} --resume")


def open_mixture(config: TrainConfig) -> Mixture:
    """The sources of a config that are used, with their weights in the mix and their options."""
    sources, weights, options = open_used(config)
    validation = [open_source(source) for source in config.validation]
    return Mixture(sources, weights, options, validation)


def open_used(config: TrainConfig) -> tuple[list[Source], list[float], list[TrainSource]]:
    """Without those that ``small_sources`` leaves out."""
    sources, weights = open_sources(config)
    used = [
        i for i, source in enumerate(sources)
        if config.small_sources == "refuse" or num_train_rows(source, config) >= config.batch_size
    ]  # fmt: skip
    if not used:
        raise UserError(f"every source has fewer pairs than a batch of {config.batch_size}; lower batch_size")
    options = [config.data[i] for i in used]
    # again, for a source that is left out takes its weight along
    tasks = [option.task_type for option in options]
    weights = fixed_share([weights[i] for i in used], tasks, config.retrieval_share)
    return [sources[i] for i in used], weights, options


def open_sources(config: TrainConfig) -> tuple[list[Source], list[float]]:
    """The sources of a config and their weights in the mix."""
    sources = [open_source(source) for source in config.data]
    sizes, weights = [len(source) for source in sources], [source.weight for source in config.data]
    weights = mix(sizes, weights, config.sampling.exponent, config.sampling.cap)
    return sources, fixed_share(weights, [source.task_type for source in config.data], config.retrieval_share)


def open_source(source: SourceConfig) -> Source:
    """The pairs of a file, or the built-in ones."""
    if source.path != "docstrings" or Path(source.path).exists():
        with progress_bar(f"reading {source.called}", None) as advance:
            return load_source(source, advance)
    return docstring_source(source)


def build(parts: Parts, config: TrainConfig, mixture: Mixture | None = None) -> Embedder:
    """The model a run starts from; ``mixture``: its pairs, which upcycling by clusters looks at."""
    if config.prompts is not None:
        prompts, default = dict(config.prompts), parts.tokenizer.default_prompt
        parts.tokenizer.prompts = prompts
        parts.tokenizer.default_prompt = default if default in prompts else None
    parts = in_float32(member(parts, View(layers=config.layers)))
    if config.attention:
        parts = look(parts, config.attention)
    if config.pooling:
        parts = change_pooling(parts, config.pooling)
    if config.vocabulary:
        parts, _ = compress_vocabulary(parts, config.vocabulary)
    if config.widen:
        spec, state = widen(parts.spec, parts.state, config.widen)
        parts = replace(parts, spec=spec, state=state)
    if config.upcycle:
        sample = None
        if config.upcycle.init == "cluster" and mixture:
            sample = sample_batch(mixture, parts.tokenizer, config, config.upcycle.sample)
        spec, state = upcycle(parts.spec, parts.state, config.upcycle, sample)
        parts = replace(parts, spec=spec, state=state)
    if config.loss.bias_rate:
        spec, state = add_selection_bias(parts.spec, parts.state)
        parts = replace(parts, spec=spec, state=state)
    if config.head:
        parts = add_expert_head(parts, config.head)
    model = Embedder(parts)
    for prompt in model.prompts.values():
        model.prompt_tokens(prompt=prompt)  # refuses one that pooling cannot leave out
    return model.to("cuda") if torch.cuda.is_available() else model
