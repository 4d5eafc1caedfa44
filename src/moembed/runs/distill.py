"""A run that trains a student to give a teacher's vectors: which teacher, which base, which texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from moembed.config import config_hash
from moembed.console import progress_bar, say
from moembed.data.provenance import credit
from moembed.data.text import TextConfig, read_texts
from moembed.embedder import Embedder
from moembed.encoding import TextEncoder, View
from moembed.files import locked
from moembed.folder.bases import base_name, read_base
from moembed.inference.member import member
from moembed.inference.token_vectors import require_one_vector, require_vector_of_text
from moembed.report.card import write_card
from moembed.report.training.page import write_report
from moembed.runs.inputs import require_new_run
from moembed.runs.train import TrainResult
from moembed.runs.training_run import (
    load_run,
    make_run_folder,
    model_facts,
    resolve_run,
    says_task,
    written_aside,
)
from moembed.search.index_model import open_encoder
from moembed.search.teacher import SentenceTransformerEncoder
from moembed.training.distillation.settings import DistillationConfig
from moembed.training.distillation.task import Searched, sampler_of
from moembed.training.distillation.teacher import ROLES, TeacherVectors
from moembed.training.distillation.texts import RoleTexts, cut_texts, unique_texts
from moembed.training.distillation.train import train_distillation
from moembed.training.parallel import World, joined
from moembed.training.task import distinct
from moembed.types import UserError
from moembed.weights.precision import in_float32
from moembed.weights.projection import add_projection
from moembed.weights.upcycle import UpcycleConfig, upcycle


class DistillSource(TextConfig):
    """``role``: what its texts are embedded for, by student and teacher alike, each with its own prompt."""

    role: Literal["query", "document", "both"] = "both"


class DistillConfig(DistillationConfig):
    """``teacher`` is whatever makes vectors: a folder, a hub id, static word vectors, the address of a
    server, or ``st:NAME`` of sentence-transformers. ``base`` is the model that becomes the student; a linear
    layer is added to it where its vectors have another width than the teacher's.

    ``data`` is a file name, a list of them, or a list of sources of texts. ``prompts`` become part of the
    student; null: the teacher's prompts of the two roles. ``layers`` keeps the first so many of the base,
    ``upcycle`` gives it experts. ``cache`` keeps the teacher's vectors for later runs; null: the run folder.
    """

    task: Literal["distillation"] = "distillation"
    teacher: str
    base: str = "minilm"
    revision: str | None = None
    allow_pickle: bool = False
    out: str
    data: tuple[DistillSource, ...] = Field(min_length=1)
    layers: int | None = Field(default=None, ge=1)
    upcycle: UpcycleConfig | None = None
    prompts: dict[str, str] | None = None
    cache: str | None = None

    @field_validator("data", mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        values = value if isinstance(value, (list, tuple)) else [value]
        return [{"path": item} if isinstance(item, str) else item for item in values]


def is_distillation(recipe: Path, overrides: Sequence[str]) -> bool:
    """Whether a recipe, or an override, says ``task: distillation``."""
    return says_task(recipe, overrides, "distillation")


def load_distillation(path: Path | None, overrides: Sequence[str]) -> DistillConfig:
    """Read a recipe; ``steps``, ``epochs`` or ``minutes`` among the overrides replaces the file's."""
    return load_run(DistillConfig, path, overrides)


def distill(
    config: DistillConfig | Mapping[str, Any] | str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    **overrides: Any,
) -> TrainResult:
    """Train a student, as ``moembed distill`` does; the arguments are those of `moembed.runs.train.train`.

    Raises:
        UserError: anything wrong with the teacher, the base or the texts, or a run folder that exists.
    """
    resolved = resolve_run(DistillConfig, config, overrides)
    with joined() as world, locked(Path(resolved.out)) if world.first else nullcontext():
        return _run(resolved, resume, overwrite, world)


def open_teacher(name: str) -> TextEncoder:
    kind, separator, rest = name.partition(":")
    if separator and kind == "st":
        return SentenceTransformerEncoder(rest)
    teacher = open_encoder(name)
    require_vector_of_text(teacher, f"the teacher {name}")
    return teacher


def _run(config: DistillConfig, resume: bool, overwrite: bool, world: World) -> TrainResult:
    run = Path(config.out)
    tell = say if world.first else lambda text: None
    if resume and not run.is_dir():
        raise UserError(f"{run} does not exist, so there is nothing to resume")

    with written_aside(run, "teacher", resume, world) as kept:
        # ---- teacher, student, and its texts; the first process fills the cache, the others read it
        with world.first_ahead():
            if world.first and not resume:
                require_new_run(run, config, overwrite)
            encoder = open_teacher(config.teacher)
            model, notes = build(config, encoder)
            for note in notes:
                tell(note)
            sources = open_texts(config, model, encoder, tell)
            sampler_of(config, sources)  # before vectors are made: there are enough texts
            teacher = _filled(encoder, sources, Path(config.cache or kept))
        world.any(False)  # all have opened the vectors before they move into the run folder
        if teacher.truncated:
            tell(f"{teacher.truncated:,} texts were longer than the teacher reads, which cut them")
        tell(model_facts(model, config, config.precision, world))

        # ---- training, and what is made of it; the run folder is made when nothing was wrong so far
        def make_folder() -> None:
            make_run_folder(run, config, config.base, (source.path for source in config.data), overwrite)
            if kept.exists():
                kept.rename(run / "teacher")

        begin = None if resume else make_folder
        searched = Searched(_searched(encoder), config.teacher)
        del encoder  # all of its vectors are on disk
        trained = train_distillation(config, model, teacher, sources, run, searched, resume, begin)
    result = TrainResult(str(run), str(run / "model"), config_hash(config), **asdict(trained))
    if world.first:
        _finish(config, result)
    return result


def build(config: DistillConfig, teacher: TextEncoder) -> tuple[Embedder, list[str]]:
    """The student a run starts from, and what is to be said of it."""
    base = read_base(config.base, config.revision, config.allow_pickle)
    parts = in_float32(member(base, View(layers=config.layers)))
    require_one_vector(parts.pooling, "a student of `moembed distill`")
    notes = []
    prompts = dict(config.prompts) if config.prompts is not None else _prompts_of(teacher)
    if config.prompts is None and prompts != parts.tokenizer.prompts:
        said = ", ".join(f"{role} {text!r}" for role, text in prompts.items()) or "none"
        notes.append(f"the student gets the prompts of its teacher: {said}")
    parts.tokenizer.prompts, parts.tokenizer.default_prompt = prompts, None
    if config.upcycle:
        spec, state = upcycle(parts.spec, parts.state, config.upcycle)
        parts = replace(parts, spec=spec, state=state)
    if (dim := parts.head.dim(parts.pooling.dim(parts.spec.width))) != teacher.dim:
        parts = add_projection(parts, teacher.dim, config.seed)
        notes.append(f"a linear layer takes the student's {dim} coordinates to the teacher's {teacher.dim}")
    parts = replace(parts, dims=_dims_of(teacher), truncate_dim=None, relation=None)
    limit = min(parts.tokenizer.max_length, parts.spec.max_length)
    if config.max_length and config.max_length > limit:
        raise UserError(f"max_length is {config.max_length}, but the student reads {limit}; lower it")
    parts.tokenizer.max_length = config.max_length or limit
    model = Embedder(parts)
    return (model.to("cuda") if torch.cuda.is_available() else model), notes


def open_texts(
    config: DistillConfig, model: Embedder, teacher: TextEncoder, tell: Any = say
) -> list[RoleTexts]:
    """The texts of every source in every role, each once, cut to what the student reads.

    Where neither model makes a difference between the roles, ``both`` is one.
    """
    same = _prefix(model, "query") == _prefix(model, "document") and model.tag_facts("query") == (
        model.tag_facts("document")
    )
    same = same and teacher.space(role="query") == teacher.space(role="document")
    found = []
    for source in config.data:
        with progress_bar(f"reading {source.path}", None) as advance:
            texts: list[str] = []
            for block in read_texts([source], lambda note: tell(f"note: {note}")):
                texts += [text.text for text in block]
                advance(len(block))
        both = ("document",) if same else ROLES
        for role in both if source.role == "both" else (source.role,):
            kept, cut = cut_texts(texts, model.tokenizer, _prefix(model, role))
            listed = unique_texts(kept)
            name = f"{source.path}, {role}"
            twice = f", {len(kept) - len(listed):,} more are repetitions" if len(listed) < len(kept) else ""
            tell(
                f"{name}: {len(listed):,} texts{twice}; {cut:,} are cut at the {model.tokenizer.max_length} "
                "tokens that the student reads"
            )
            found.append(RoleTexts(name, role, listed, len(listed) - round(config.held_out * len(listed))))
    names = distinct(source.name for source in found)  # of two columns of one file
    return [replace(source, name=name) for source, name in zip(found, names, strict=True)]


def _filled(encoder: TextEncoder, sources: Sequence[RoleTexts], folder: Path) -> TeacherVectors:
    """The teacher's vectors of all texts."""
    teacher = TeacherVectors(encoder, folder)
    for source in sources:
        with progress_bar(f"teacher: {source.name}", len(source.texts)) as advance:
            teacher.fill(source.texts, source.role, advance)
    return teacher


def _prefix(model: Embedder, role: str) -> str:
    return model.tokenizer.prompt(model.role_prompt(role))


def _prompts_of(teacher: TextEncoder) -> dict[str, str]:
    """The texts that a teacher puts in front, by role."""
    return {role: text for role in ROLES if (text := teacher.role_prefix(role))}  # type: ignore[attr-defined]


def _dims_of(teacher: TextEncoder) -> tuple[int, ...]:
    """Prefixes of its vectors that were trained to stand alone: the student's do so too (LEAF)."""
    info = getattr(teacher, "info", teacher)
    return tuple(dim for dim in getattr(info, "dims", ()) if dim <= teacher.dim)


def _searched(teacher: TextEncoder) -> dict[str, int]:
    """The spaces of the teacher's documents, whole and cut, with their widths."""
    dims = {teacher.dim, *_dims_of(teacher)}
    return {teacher.space(role="document", view=View(dim=dim)): dim for dim in sorted(dims)}


def _finish(config: DistillConfig, result: TrainResult) -> None:
    """The card, the report, and what to say at the end."""
    run, model = Path(result.run), Path(result.model)
    write_card(model, result.model, base_name(config.base), [credit(source) for source in config.data])
    took = f"{result.steps} steps, {result.pairs:,} texts in {result.seconds:.0f} s"
    say(f"{took}; the model is in {result.model}")
    try:
        say(f"the report is in {write_report(run, f'moembed distill: {run.name}')}")
    except UserError as error:  # no matplotlib, or no step was made
        say(f"no report: {error}")
    if result.stopped_by_user:
        say(f"stopped early; resume with: moembed train {run / 'recipe.yaml'} --resume")
    else:
        say(f'search an index of its teacher: moembed search INDEX "your question" --model {result.run}')
