"""What comes before pairs: tokenizers, and the recipe of pretraining that `run_pretraining` carries out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator

from moembed.config import Strict, config_hash, dump, load
from moembed.console import progress_bar, say
from moembed.data.text import TextConfig, read_texts
from moembed.embedder import Embedder
from moembed.files import locked, replacing, require_free
from moembed.folder.bases import base_name, locate_base
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.folder.write import write_folder
from moembed.machine import choose_precision
from moembed.report.card import write_card
from moembed.tokenizer import Tokenizer
from moembed.training.corpus import Language, open_corpus
from moembed.training.distributed import World, joined
from moembed.training.heads import Heads, read_heads
from moembed.training.log import read_metrics
from moembed.training.masking import Vocabulary
from moembed.training.objective import OBJECTIVES
from moembed.training.pretrain import PretrainConfig, pretrain
from moembed.types import UserError
from moembed.weights.pieces import extend, learn, tokenizer_files
from moembed.weights.positions import to_rope
from moembed.weights.vocabulary import pad, with_tokenizer

_LONGEST = 512  # tokens per text that a tokenizer without a model is said to be for


class RopeConfig(Strict):
    """Rotary positions in place of the base's; see `moembed.weights.positions.to_rope`."""

    base: float = Field(default=10_000.0, gt=0)
    max_positions: int = Field(default=2048, ge=3)


class PretrainRecipe(PretrainConfig):
    """``data`` is a file name, a list of them, or a list of sources with columns and languages; one with
    ``subsets``, a list, stands for as many sources.

    ``rope`` None keeps the positions of the base. ``pad_vocabulary`` fills its rows up to a multiple.
    """

    base: str
    out: str
    data: tuple[TextConfig, ...] = Field(min_length=1)
    rope: RopeConfig | None = None
    pad_vocabulary: int | None = Field(default=None, ge=1)

    @field_validator("data", mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        sources: list[Any] = []
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, dict) and isinstance(item.get("subsets"), list):
                rest = {key: setting for key, setting in item.items() if key != "subsets"}
                sources += [rest | {"subset": subset} for subset in item["subsets"]]
            else:
                sources.append({"path": item} if isinstance(item, str) else item)
        return sources


def load_pretraining(path: Path, overrides: Sequence[str]) -> PretrainRecipe:
    return load(PretrainRecipe, path, overrides)


def run_pretraining(recipe: PretrainRecipe, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Load, tokenise, train, save, in one process or in each that ``torchrun`` started.

    Returns what ``moembed pretrain --json`` prints.

    Raises:
        UserError: anything wrong with the base or the texts, or a run folder that already exists.
    """
    with joined() as world, locked(Path(recipe.out)) if world.first else nullcontext():
        return _run(recipe, resume, overwrite, world)


def _run(recipe: PretrainRecipe, resume: bool, overwrite: bool, world: World) -> dict[str, Any]:
    run = Path(recipe.out)
    tell = say if world.first else lambda text: None
    if resume and not run.is_dir():
        raise UserError(f"{run} does not exist, so there is nothing to resume")
    folder = locate_base(recipe.base)
    parts = build(read_folder(folder), recipe)
    words = parts.tokenizer.backend.get_vocab_size()
    heads = Heads(parts.spec, words, OBJECTIVES[recipe.objective].decoder, recipe.seed)
    head = "the base's head" if read_heads(folder, heads) else "a fresh head"
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    model, heads = Embedder(parts).to(device), heads.to(device)
    if not world.first:
        world.agree(None)  # the first process makes the run folder and tokenises the texts into it
    elif not resume:
        require_free(run, overwrite)
        run.mkdir(parents=True, exist_ok=True)
        (run / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    corpus = _corpus(recipe, parts.tokenizer, run, resume)
    if world.first:
        world.agree(None)
    tell(
        f"{len(corpus)} languages, {sum(map(len, corpus)):,} sequences of {recipe.sequence_length} tokens; "
        f"{model.num_parameters():,} parameters and {head}, {choose_precision(recipe.precision, device)}, "
        f"recipe {config_hash(recipe)}"
    )
    trained = pretrain(recipe, model, heads, corpus, run, resume, record=recipe)
    if world.first:
        data = sorted({source.path for source in recipe.data})
        write_card(run / "model", str(run / "model"), base_name(recipe.base), data)
    tell(f"{trained.steps} steps in {trained.seconds:.0f} s; the model is in {run / 'model'}")
    if trained.stopped_by_user:
        tell(f"stopped early; resume with: moembed pretrain {run / 'recipe.yaml'} --resume")
    facts = {"run": str(run), "model": str(run / "model"), "recipe": config_hash(recipe)}
    return facts | asdict(trained) | _looks(run)


def build(parts: Parts, recipe: PretrainRecipe) -> Parts:
    """The model a recipe starts from; with rotary positions it reads ``rope.max_positions`` tokens.

    Raises:
        UserError: sequences longer than it reads, a tokenizer without a mask token.
    """
    Vocabulary.of(parts.tokenizer.backend)
    spec, state, tokenizer = parts.spec, parts.state, parts.tokenizer
    if recipe.rope:
        spec, state = to_rope(spec, state, recipe.rope.base, recipe.rope.max_positions)
        prompts, default = tokenizer.prompts, tokenizer.default_prompt
        tokenizer = Tokenizer(tokenizer.backend, spec.max_length, prompts, default)
    if recipe.pad_vocabulary:
        spec, state = pad(spec, state, recipe.pad_vocabulary)
    if recipe.sequence_length > spec.max_length:
        raise UserError(
            f"sequence_length {recipe.sequence_length} is more than the {spec.max_length} tokens the model "
            "reads; shorten it, or give the model rotary positions with rope.max_positions"
        )
    return replace(parts, spec=spec, state=state, tokenizer=tokenizer)


def _corpus(recipe: PretrainRecipe, tokenizer: Tokenizer, run: Path, resume: bool) -> list[Language]:
    made_of = [source.model_dump(mode="json") for source in recipe.data]
    try:
        with progress_bar("tokenising", None) as advance:
            return open_corpus(
                run / "tokens", read_texts(recipe.data), tokenizer.backend, recipe.sequence_length,
                recipe.packed, made_of, advance,
            )  # fmt: skip
    except UserError:
        if not resume:  # so that the folder is not in the way of the next try
            (run / "recipe.yaml").unlink()
        raise


def _looks(run: Path) -> dict[str, Any]:
    """The held-out figures before the run and the newest ones, from the metrics."""
    lines = read_metrics(run / "metrics.jsonl")
    return {key: value for line in lines for key, value in line.items() if key.startswith("held_out")}


def make_tokenizer(
    paths: Sequence[str], out: Path, kind: str = "unigram", vocab_size: int = 32000, lowercase: bool = False,
    base: str | None = None, extend_by: int | None = None, column: str = "text", overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Learn a tokenizer on texts, or more pieces for that of ``base``; with ``base``, write a model folder.

    Returns the number of pieces, and with ``base`` where their rows came from.

    Raises:
        UserError: anything wrong with the texts or the base, ``extend_by`` without ``base``, a folder in the
            way.
    """
    if extend_by is not None and base is None:
        raise UserError("--extend adds pieces to the tokenizer of a model: name the model with --base")
    require_free(out, overwrite)
    configs = [TextConfig(path=path, text=column) for path in paths]

    def texts() -> Iterator[str]:
        with progress_bar("reading texts", None) as advance:
            for block in read_texts(configs):
                yield from (text.text for text in block)
                advance(len(block))

    if base is None:
        backend = learn(kind, texts, vocab_size, lowercase)
        with replacing(out) as folder:
            for name, content in tokenizer_files(backend, _LONGEST).items():
                (folder / name).write_bytes(content)
        return {"pieces": backend.get_vocab_size()}
    parts = read_folder(locate_base(base))
    if extend_by is None:
        backend = learn(kind, texts, vocab_size, lowercase)
        files = tokenizer_files(backend, parts.tokenizer.max_length)
    else:
        backend = extend(parts.tokenizer.backend, texts, extend_by)
        files = tokenizer_files(backend, parts.tokenizer.max_length, parts.files)
    parts, origins = with_tokenizer(parts, backend, files)
    write_folder(out, parts)
    write_card(out, str(out), base_name(base))
    return {"pieces": backend.get_vocab_size(), **asdict(origins)}
