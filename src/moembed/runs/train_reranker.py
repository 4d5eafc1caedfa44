"""A run that trains a reranker: which base, which pairs with which negatives. `train_reranker` does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from moembed.config import config_hash
from moembed.console import say
from moembed.data.provenance import credit
from moembed.data.sampler import SamplingConfig, mix
from moembed.data.sources import Source, SourceConfig
from moembed.files import locked, write_text
from moembed.folder.bases import base_name, locate_base
from moembed.folder.reranker import fresh_reranker
from moembed.report.training.page import write_report
from moembed.reranker import Reranker
from moembed.runs.inputs import require_new_run
from moembed.runs.train import TrainResult, open_source
from moembed.runs.train_sources import each_source
from moembed.runs.training_run import (
    load_run,
    make_run_folder,
    model_facts,
    resolve_run,
    says_task,
    tell_sources,
)
from moembed.training.parallel import World, joined
from moembed.training.reranking.settings import RerankingConfig
from moembed.training.reranking.train import train_reranking
from moembed.types import UserError
from moembed.weights.precision import in_float32
from moembed.weights.selection_bias import add_selection_bias
from moembed.weights.upcycle import UpcycleConfig, upcycle


class RerankerConfig(RerankingConfig):
    """``data`` in the forms of `moembed.runs.train.TrainConfig`: the same pairs with the same hard negatives.

    ``base`` is an encoder, which gets a fresh head that reads the states as ``pooling`` says, or a reranker,
    which is trained on as it is. ``upcycle`` gives it experts first.
    """

    task: Literal["reranking"]
    base: str = "minilm"
    revision: str | None = None
    allow_pickle: bool = False
    out: str
    data: tuple[SourceConfig, ...] = Field(min_length=1)
    sampling: SamplingConfig = SamplingConfig()
    upcycle: UpcycleConfig | None = None
    pooling: Literal["cls", "mean"] = "cls"

    @field_validator("data", mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        values = value if isinstance(value, (list, tuple)) else [value]
        return [
            source
            for item in values
            for source in each_source({"path": item} if isinstance(item, str) else item)
        ]

    @field_validator("data")
    @classmethod
    def _no_grades(cls, value: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        if any(source.score or source.label or source.scores for source in value):
            raise ValueError(
                "score, scores and label are for embedders, a reranker learns from negatives: leave them out"
            )
        return value


def is_reranking(recipe: Path, overrides: Sequence[str]) -> bool:
    """Whether a recipe, or an override, says ``task: reranking``."""
    return says_task(recipe, overrides, "reranking")


def load_reranking(path: Path, overrides: Sequence[str]) -> RerankerConfig:
    """Read a recipe; ``steps``, ``epochs`` or ``minutes`` among the overrides replaces the file's."""
    return load_run(RerankerConfig, path, overrides)


def train_reranker(
    config: RerankerConfig | Mapping[str, Any] | str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    **overrides: Any,
) -> TrainResult:
    """Train a reranker, as ``moembed train`` does with ``task: reranking``; the arguments are those of
    `moembed.runs.train.train`.

    Raises:
        UserError: anything wrong with the base or the data, or a run folder that already exists.
    """
    resolved = resolve_run(RerankerConfig, config, overrides)
    with joined() as world, locked(Path(resolved.out)) if world.first else nullcontext():
        return _run(resolved, resume, overwrite, world)


def _run(config: RerankerConfig, resume: bool, overwrite: bool, world: World) -> TrainResult:
    run = Path(config.out)
    tell = say if world.first else lambda text: None
    if resume and not run.is_dir():
        raise UserError(f"{run} does not exist, so there is nothing to resume")

    # ---- the data and the model; the first process fills the caches, the others read them
    with world.first_ahead():
        if world.first and not resume:
            require_new_run(run, config, overwrite)
        sources, weights, model = prepared_reranker(config, tell)
    tell(model_facts(model, config, config.precision, world))

    # ---- training, and what is made of it; the run folder is made when nothing was wrong so far
    paths = [source.path for source in config.data]
    folder = None if resume else partial(make_run_folder, run, config, config.base, paths, overwrite)
    trained = train_reranking(config, model, sources, weights, run, resume, config, folder)
    result = TrainResult(str(run), str(run / "model"), config_hash(config), **asdict(trained))
    if world.first:
        _finish(config, model, result)
    return result


def prepared_reranker(
    config: RerankerConfig, tell: Callable[[str], object]
) -> tuple[list[Source], list[float], Reranker]:
    """The sources, their weights in the mix and the model of a recipe."""
    sources = [open_source(source) for source in config.data]
    tell_sources(sources, tell)
    model = build(config)
    if config.max_length and config.max_length > model.max_length:
        raise UserError(
            f"max_length is {config.max_length}, but the model reads {model.max_length}; lower it"
        )
    return sources, _weights(config, sources), model


def build(config: RerankerConfig) -> Reranker:
    """The model a run starts from; from now on it reads ``max_length`` tokens of a pair.

    Raises:
        UserError: a pooling that the head of the base does not have.
    """
    folder = locate_base(config.base, config.revision, config.allow_pickle)
    parts = in_float32(fresh_reranker(folder, config.pooling, config.seed, config.allow_pickle))
    if config.pooling == "mean" and parts.head.pooling != "mean":
        raise UserError(
            f"pooling is mean, and the head of {config.base} reads by {parts.head.pooling}: leave pooling out"
        )
    if config.upcycle:
        spec, state = upcycle(parts.spec, parts.state, config.upcycle)
        parts = replace(parts, spec=spec, state=state)
    if config.loss.bias_rate:
        spec, state = add_selection_bias(parts.spec, parts.state)
        parts = replace(parts, spec=spec, state=state)
    parts.tokenizer.max_length = min(config.max_length or parts.tokenizer.max_length, parts.spec.max_length)
    model = Reranker(parts)
    return model.to("cuda") if torch.cuda.is_available() else model


def _weights(config: RerankerConfig, sources: Sequence[Source]) -> list[float]:
    sizes, weights = [len(source) for source in sources], [source.weight for source in config.data]
    return mix(sizes, weights, config.sampling.exponent, config.sampling.cap)


def _finish(config: RerankerConfig, model: Reranker, result: TrainResult) -> None:
    """The card, the report, and what to say at the end."""
    folder = Path(result.model)
    write_text(folder / "README.md", _card(config, model))
    say(
        f"{result.steps} steps, {result.pairs:,} queries in {result.seconds:.0f} s; "
        f"{result.truncated:,} pairs were cut; the model is in {folder}"
    )
    try:
        say(f"the report is in {write_report(Path(result.run), f'moembed train: {Path(result.run).name}')}")
    except UserError as error:  # no matplotlib, or no step was made
        say(f"no report: {error}")
    if result.stopped_by_user:
        say(f"stopped early; resume with: moembed train {Path(result.run) / 'recipe.yaml'} --resume")
    else:
        say(f'rank with it: moembed rerank {result.run} candidates.jsonl --query "your question"')


def _card(config: RerankerConfig, model: Reranker) -> str:
    data = "\n".join(f"- {credit(source)}" for source in config.data)
    active = f", {model.num_parameters(active=True):,} of them active per token"
    experts = active if model.encoder.spec.moe else ""
    own = "import moembed  # makes the folder known\n" if experts else ""
    return f"""---
library_name: sentence-transformers
pipeline_tag: text-ranking
tags: [cross-encoder, moembed]
---

# {Path(config.out).name}

A reranker made of {base_name(config.base)}: {model.num_parameters():,} parameters{experts}. It reads a query
and a text together, {model.max_length} tokens of both, and gives a score between 0 and 1.

```python
from moembed import Reranker

Reranker.from_pretrained("{config.out}/model").rank("a query", ["a text", "another"])
```

```python
{own}from sentence_transformers import CrossEncoder

CrossEncoder("{config.out}/model").predict([("a query", "a text")])
```

Trained for the {config.loss.kind} loss on:

{data}
"""
