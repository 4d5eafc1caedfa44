"""A pretraining run: which base, which texts, how to hide words. `pretrain` carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator

from moembed.config import Strict, config_hash, load, resolve
from moembed.console import progress_bar, say
from moembed.data.provenance import credit
from moembed.data.text import TextConfig, read_texts
from moembed.embedder import Embedder
from moembed.files import locked
from moembed.folder.bases import base_name, locate_base
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.inference.token_vectors import require_one_vector
from moembed.machine import choose_precision
from moembed.report.card import write_card
from moembed.runs.inputs import require_new_run
from moembed.runs.training_run import make_run_folder, written_aside
from moembed.tokenizer import Tokenizer
from moembed.training.log import read_metrics
from moembed.training.masked_lm.corpus import Language, open_corpus
from moembed.training.masked_lm.heads import Heads, read_heads
from moembed.training.masked_lm.masking import Vocabulary
from moembed.training.masked_lm.objective import plans
from moembed.training.masked_lm.settings import MaskedLMConfig
from moembed.training.masked_lm.train import train_masked_lm
from moembed.training.parallel import World, joined
from moembed.types import UserError
from moembed.weights.positions import to_rope
from moembed.weights.precision import in_float32
from moembed.weights.vocabulary import pad


class RopeConfig(Strict):
    """Rotary positions in place of the base's; see `moembed.weights.positions.to_rope`.

    ``base`` None: of a model that is rotary already its own, else 10,000.
    """

    base: float | None = Field(default=None, gt=0)
    max_positions: int = Field(default=2048, ge=3)


class PretrainConfig(MaskedLMConfig):
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


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """What a pretraining run leaves.

    Attributes:
        run: the run folder: metrics, checkpoints, tokens, the head that guesses words.
        model: the folder of the trained model.
        recipe: hash of the resolved config.
        sequences: that were trained on.
        stopped_by_user: whether Ctrl-C or SIGTERM ended it early.
        held_out: loss in nats and accuracy by language, before the run and at its end, as in the metrics.
    """

    run: str
    model: str
    recipe: str
    steps: int
    seconds: float
    sequences: int
    stopped_by_user: bool
    held_out: dict[str, dict[str, float]]


def load_pretraining(path: Path, overrides: Sequence[str]) -> PretrainConfig:
    return load(PretrainConfig, path, overrides)


def pretrain(
    config: PretrainConfig | Mapping[str, Any] | str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    **overrides: Any,
) -> PretrainResult:
    """Train an encoder to guess hidden words, as ``moembed pretrain`` does.

    Args:
        config: a `PretrainConfig`, a mapping with the same keys, or a YAML file.
        resume: go on from the newest checkpoint of ``out``.
        overwrite: replace the run folder ``out`` if it exists.
        overrides: keys that replace those of ``config``, nested ones dotted.

    Raises:
        UserError: anything wrong with the base or the texts, or a run folder that already exists.
    """
    resolved = resolve(PretrainConfig, config, overrides)
    with joined() as world, locked(Path(resolved.out)) if world.first else nullcontext():
        return _run(resolved, resume, overwrite, world)


def _run(config: PretrainConfig, resume: bool, overwrite: bool, world: World) -> PretrainResult:
    run = Path(config.out)
    tell = say if world.first else lambda text: None
    if resume and not run.is_dir():
        raise UserError(f"{run} does not exist, so there is nothing to resume")

    # ---- the model and its heads
    with world.first_ahead():
        if world.first and not resume:
            require_new_run(run, config, overwrite)
    folder = locate_base(config.base)
    model, heads, head = prepared(folder, config)
    device = model.device

    with written_aside(run, "tokens", resume, world) as tokens:
        # ---- the tokens; the first process makes them, the others read them
        with world.first_ahead():
            corpus = _corpus(config, model.tokenizer, tokens)
        world.any(False)  # all have opened them before they move into the run folder
        tell(
            f"{len(corpus)} languages, {sum(map(len, corpus)):,} sequences of {config.sequence_length} "
            f"tokens; {model.num_parameters():,} parameters and {head}, "
            f"{choose_precision(config.precision, device)}, recipe {config_hash(config)}"
        )

        # ---- training, and what is made of it; the run folder is made when nothing was wrong so far
        def make_folder() -> None:
            paths = (source.path for source in config.data)
            make_run_folder(run, config, str(folder.resolve()), paths, overwrite)
            tokens.rename(run / "tokens")

        begin = None if resume else make_folder
        trained = train_masked_lm(config, model, heads, corpus, run, resume, config, begin)
    if world.first:
        data = sorted({credit(source) for source in config.data})
        write_card(run / "model", str(run / "model"), base_name(config.base), data)
    tell(f"{trained.steps} steps in {trained.seconds:.0f} s; the model is in {run / 'model'}")
    if trained.stopped_by_user:
        tell(f"stopped early; resume with: moembed pretrain {run / 'recipe.yaml'} --resume")
    return PretrainResult(
        str(run), str(run / "model"), config_hash(config), trained.steps, trained.seconds, trained.pairs,
        trained.stopped_by_user, _looks(run),
    )  # fmt: skip


def prepared(folder: Path, config: PretrainConfig) -> tuple[Embedder, Heads, str]:
    """The model of a recipe with its heads, and where these come from.

    Raises:
        UserError: what ``build`` refuses; an objective with a decoder, of a model that keeps token vectors.
    """
    parts = build(in_float32(read_folder(folder)), config)
    vocabulary = parts.tokenizer.backend.get_vocab_size()
    decoded = [name for name, plan in plans(config).items() if plan.decoder_rate is not None]
    if decoded:
        require_one_vector(parts.pooling, f"objective {decoded[0]}")
    heads = Heads(parts.spec, vocabulary, bool(decoded), config.seed)
    head = "the base's head" if read_heads(folder, heads) else "a fresh head"
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    return Embedder(parts).to(device), heads.to(device), head


def build(parts: Parts, config: PretrainConfig) -> Parts:
    """The model a recipe starts from; with rotary positions it reads ``rope.max_positions`` tokens.

    Raises:
        UserError: sequences longer than it reads, a tokenizer without a mask token.
    """
    Vocabulary.of(parts.tokenizer.backend)
    spec, state, tokenizer = parts.spec, parts.state, parts.tokenizer
    if config.rope:
        spec, state = to_rope(spec, state, config.rope.base, config.rope.max_positions)
        tokenizer = tokenizer.replaced(max_length=spec.max_length)
    if config.pad_vocabulary:
        spec, state = pad(spec, state, config.pad_vocabulary)
    if config.sequence_length > spec.max_length:
        raise UserError(
            f"sequence_length {config.sequence_length} is more than the {spec.max_length} tokens the model"
            " reads; shorten it, or give the model rotary positions with rope.max_positions"
        )
    return replace(parts, spec=spec, state=state, tokenizer=tokenizer)


def _corpus(config: PretrainConfig, tokenizer: Tokenizer, folder: Path) -> list[Language]:
    made_of = [source.model_dump(mode="json") for source in config.data]
    with progress_bar("tokenising", None) as advance:
        texts = read_texts(config.data, lambda note: say(f"note: {note}"))
        length, packed = config.sequence_length, config.packed
        return open_corpus(folder, texts, tokenizer.backend, length, packed, made_of, advance)


def _looks(run: Path) -> dict[str, Any]:
    """The held-out figures before the run and the newest ones, from the metrics."""
    lines = read_metrics(run / "metrics.jsonl")
    return {key: value for line in lines for key, value in line.items() if key.startswith("held_out")}
