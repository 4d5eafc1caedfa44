"""A recipe: which base, which data, whether to upcycle, and how to train. `run_recipe` carries it out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from moembed.config import config_hash, dump, load
from moembed.console import progress_bar, say
from moembed.data.docstrings import collect
from moembed.data.sampler import SamplingConfig, mix
from moembed.data.sources import Source, SourceConfig, load_source
from moembed.embedder import Embedder
from moembed.files import locked, require_free
from moembed.folder.bases import base_name, read_base
from moembed.folder.parts import Parts
from moembed.machine import choose_precision
from moembed.report.card import write_card
from moembed.report.training.page import write_report
from moembed.training.distributed import World, joined
from moembed.training.evaluation import load_tasks
from moembed.training.held_out import learnt
from moembed.training.loop import Trained, train
from moembed.training.settings import SourceOptions, TrainConfig, fit_lengths
from moembed.types import Pair, UserError
from moembed.weights.selection_bias import add_selection_bias
from moembed.weights.upcycle import UpcycleConfig, upcycle


class TrainSource(SourceConfig, SourceOptions):
    """Where pairs lie, and how they are trained on."""


class Recipe(TrainConfig):
    """``data`` is a file name, a list of them, or a list of sources with columns and weights; the name
    ``docstrings`` means the built-in pairs of `moembed.data.docstrings`. ``sampling`` lets their sizes count.
    ``validation`` names sources, in the same forms, for the held-out loss alone. An entry with ``each``, a
    list of words, stands for as many sources: every ``{}`` in it becomes the word. ``small_sources`` says
    what becomes of a source with fewer pairs than a batch.

    ``revision`` is the branch, tag or commit of a base from the hub; ``allow_pickle`` reads a base that has
    no safetensors. ``upcycle`` None trains the base as it is. ``prompts`` become part of the model.
    """

    base: str = "minilm"
    revision: str | None = None
    allow_pickle: bool = False
    out: str
    data: tuple[TrainSource, ...] = Field(min_length=1)
    validation: tuple[SourceConfig, ...] = ()
    small_sources: Literal["refuse", "skip"] = "refuse"
    sampling: SamplingConfig = SamplingConfig()
    upcycle: UpcycleConfig | None = None
    prompts: dict[str, str] | None = None

    @field_validator("data", "validation", mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        values = value if isinstance(value, (list, tuple)) else [value]
        return [
            source for item in values for source in _each({"path": item} if isinstance(item, str) else item)
        ]


def _each(source: Any) -> list[Any]:
    """The sources that an entry with ``each`` stands for, or the entry itself."""
    if not isinstance(source, dict) or not isinstance(words := source.get("each"), list):
        return [source]
    rest = {key: value for key, value in source.items() if key != "each"}
    return [
        {k: v.replace("{}", str(word)) if isinstance(v, str) else v for k, v in rest.items()}
        for word in words
    ]


def load_recipe(path: Path, overrides: Sequence[str]) -> Recipe:
    """Read a recipe; ``steps``, ``epochs`` or ``minutes`` among the overrides replaces the file's."""
    given = {override.partition("=")[0] for override in overrides}
    ends = {"steps", "epochs", "minutes"}
    dropped = [f"{end}=null" for end in sorted(ends - given)] if ends & given else []
    return load(Recipe, path, [*dropped, *overrides])


def run_recipe(recipe: Recipe, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Load, upcycle, train, save, in one process or in each that ``torchrun`` started.

    Returns what ``moembed train --json`` prints.

    Raises:
        UserError: anything wrong with the base or the data, or a run folder that already exists.
    """
    with joined() as world, locked(Path(recipe.out)) if world.first else nullcontext():
        return _run(recipe, resume, overwrite, world)


def _run(recipe: Recipe, resume: bool, overwrite: bool, world: World) -> dict[str, Any]:
    run = Path(recipe.out)
    tell = say if world.first else lambda text: None
    if resume and not run.is_dir():
        raise UserError(f"{run} does not exist, so there is nothing to resume")
    if not world.first:
        world.agree(None)  # the first process fills the cache of the data, the others read it
    sources, weights = open_sources(recipe)
    used = [i for i, source in enumerate(sources) if _is_used(source, recipe)]
    if len(used) < len(sources):
        tell(f"{len(sources) - len(used)} sources have fewer pairs than a batch and are left out")
    sources, weights = [sources[i] for i in used], [weights[i] for i in used]
    validation = [open_source(config) for config in recipe.validation]
    for source in [*sources, *validation]:
        tell(source.describe())
    tasks = load_tasks(recipe.evaluate)
    model = build(read_base(recipe.base, recipe.revision, recipe.allow_pickle), recipe)
    positions, limit = model.encoder.spec.max_length, model.tokenizer.max_length
    recipe, model.tokenizer.max_length, notes = fit_lengths(recipe, positions, limit)
    for note in notes:
        tell(note)
    if world.first and not resume:
        require_free(run, overwrite)
        run.mkdir(parents=True, exist_ok=True)
        (run / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    if world.first:
        world.agree(None)
    tell(
        f"{model.num_parameters():,} parameters, {model.num_parameters(active=True):,} active, "
        f"{choose_precision(recipe.precision, model.device)}, recipe {config_hash(recipe)}"
        + (f", {world.size} processes" if world.size > 1 else "")
    )
    trained = train(
        recipe, model, sources, weights, run, resume=resume, record=recipe,
        options=[recipe.data[i] for i in used], validation=validation, tasks=tasks,
    )  # fmt: skip
    if world.first:
        _finish(recipe, trained, run)
    return {"run": str(run), "model": str(run / "model"), "recipe": config_hash(recipe), **asdict(trained)}


def _is_used(source: Source, recipe: Recipe) -> bool:
    return recipe.small_sources == "refuse" or learnt(source, recipe) >= recipe.batch_size


def _finish(recipe: Recipe, trained: Trained, run: Path) -> None:
    """The card, the report, and what to say at the end."""
    data = [source.path for source in recipe.data]
    write_card(run / "model", str(run / "model"), base_name(recipe.base), data)
    say(
        f"{trained.steps} steps, {trained.pairs:,} pairs in {trained.seconds:.0f} s; "
        f"{trained.truncated:,} texts were cut; the model is in {run / 'model'}"
    )
    try:
        say(f"the report is in {write_report(run, f'moembed train: {run.name}')}")
    except UserError as error:  # no matplotlib, or no step was made
        say(f"no report: {error}")
    if trained.stopped_by_user:
        say(f"stopped early; resume with: moembed train {run / 'recipe.yaml'} --resume")


def open_sources(recipe: Recipe) -> tuple[list[Source], list[float]]:
    """The sources of a recipe and their weights in the mix."""
    sources = [open_source(config) for config in recipe.data]
    sizes, weights = [len(source) for source in sources], [config.weight for config in recipe.data]
    return sources, mix(sizes, weights, recipe.sampling.exponent, recipe.sampling.cap)


def open_source(config: SourceConfig) -> Source:
    """The pairs of a file, or the built-in ones of the installed packages (the demo's training side)."""
    if config.path != "docstrings" or Path(config.path).exists():
        with progress_bar(f"reading {config.title}", None) as advance:
            return load_source(config, advance)
    return Source.from_pairs("docstrings", (Pair(pair.query, pair.document) for pair in collect().train))


def build(parts: Parts, recipe: Recipe) -> Embedder:
    """The model a recipe starts from."""
    if recipe.upcycle:
        spec, state = upcycle(parts.spec, parts.state, recipe.upcycle)
        parts = replace(parts, spec=spec, state=state)
    if recipe.loss.bias_rate:
        spec, state = add_selection_bias(parts.spec, parts.state)
        parts = replace(parts, spec=spec, state=state)
    if recipe.prompts is not None:
        parts.tokenizer.prompts = dict(recipe.prompts)
    model = Embedder(parts)
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model
