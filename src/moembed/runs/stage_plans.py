"""What a recipe of several stages will do: the plan of every stage, told before the first one starts.

A stage starts from a model that is not there yet. In its place stands the model of the stage before it as it
is before its first step: of the same form, in a folder that is removed afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moembed.config import config_hash
from moembed.console import say
from moembed.data.text import read_texts
from moembed.embedder import Embedder
from moembed.files import require_replaceable
from moembed.folder.bases import locate_base, read_base
from moembed.runs.distill import DistillConfig, build, open_teacher, open_texts
from moembed.runs.dry_run import Plan, common_facts, dry_run, dry_run_reranker, given_settings
from moembed.runs.merge import checked_weights
from moembed.runs.pretrain import PretrainConfig, prepared
from moembed.runs.stages import MergeConfig, Stage, StagesPlan
from moembed.runs.train import TrainConfig
from moembed.runs.train_reranker import RerankerConfig
from moembed.runs.train_stages import merge_plan, require_sources
from moembed.runs.training_run import model_facts
from moembed.training.distillation.task import sampler_of
from moembed.training.masked_lm.corpus import open_corpus
from moembed.training.masked_lm.task import MaskedLMTask
from moembed.training.parallel import ALONE


def dry_run_stages(plan: StagesPlan, overwrite: bool = False, resume: bool = False) -> list[Plan]:
    """The plan of each stage, with its name.

    Raises:
        UserError: whatever a stage would refuse before its first step.
    """
    if not resume:
        require_replaceable(Path(plan.out), overwrite)
    require_sources(plan)
    found: list[Plan] = []
    with TemporaryDirectory() as place:
        models = {str(stage.model): str(Path(place) / stage.name) for stage in plan.stages}
        for stage in plan.stages:
            say(f"stage {stage.name}:")
            told = _plan(stage, models, Path(place) / stage.name)
            told["settings"] = given_settings(stage.config)  # with the base as the recipe has it
            found.append({"stage": stage.name} | told | {"recipe": config_hash(stage.config)})
    return found


def _plan(stage: Stage, models: Mapping[str, str], keep: Path) -> Plan:
    config = stage.config
    if isinstance(config, MergeConfig):
        return _merging(config, models, keep)
    config = config.model_copy(update={"base": models.get(config.base, config.base)})
    if isinstance(config, TrainConfig):
        return dry_run(config, resume=True, keep=keep)
    if isinstance(config, RerankerConfig):
        return dry_run_reranker(config, resume=True, keep=keep)
    if isinstance(config, PretrainConfig):
        return _pretraining(config, keep)
    return _distillation(config, keep)


def _pretraining(config: PretrainConfig, keep: Path) -> Plan:
    """The texts are tokenised, as the run will do it again."""
    model, heads, head = prepared(locate_base(config.base), config)
    model.save_pretrained(keep)
    with TemporaryDirectory() as place:
        texts = read_texts(config.data, lambda note: say(f"note: {note}"))
        backend = model.tokenizer.backend
        corpus = open_corpus(Path(place), texts, backend, config.sequence_length, config.packed, [])
        task = MaskedLMTask(config, model.train(), heads, corpus, ALONE)
        sources = [
            {"source": part.language.name, "sequences": len(part.language), "trained_on": part.num_train}
            for part in task.parts
        ]
        facts = common_facts("pretraining", config, task, config.steps, task.sampler)
    return {
        **facts,
        "model": f"{model_facts(model, config, config.precision, ALONE)}, {head}",
        "sources": sources,
        "loss": [f"{name}: {share:.0%} of the sequences" for name, share in config.shares.items()],
    }


def _distillation(config: DistillConfig, keep: Path) -> Plan:
    """The teacher's vectors are not made."""
    teacher = open_teacher(config.teacher)
    model, notes = build(config, teacher)
    model.save_pretrained(keep)
    for note in notes:
        say(note)
    texts = open_texts(config, model, teacher)
    sampler = sampler_of(config, texts)
    steps = max(1, round(config.epochs * sampler.total_steps)) if config.epochs else config.steps
    end = {"steps": steps, "minutes": config.minutes, "epochs": config.epochs}
    return {
        "task": "distillation",
        "out": config.out,
        "length": {key: value for key, value in end.items() if value is not None}
        | {"batch_size": config.batch_size, "steps_per_epoch": sampler.total_steps},
        "model": model_facts(model, config, config.precision, ALONE),
        "sources": [
            {"source": some.name, "texts": len(some.texts), "trained_on": some.num_train} for some in texts
        ],
        "loss": [f"{config.loss.kind} distance from the vectors of {config.teacher}"],
    }


def _merging(config: MergeConfig, models: Mapping[str, str], keep: Path) -> Plan:
    """The form of the result is that of the first model, which stands for it."""
    weights = checked_weights(config.models, merge_plan(config))
    first = read_base(models.get(config.models[0], config.models[0]))
    Embedder(first).save_pretrained(keep)
    told: dict[str, Any] = {"weights": list(weights)} if config.method != "self_positioning" else {}
    return {
        "task": "merge", "out": config.out, "model": f"{config.method} of {', '.join(config.models)}", **told,
        "length": {"models": len(config.models)}, "loss": [], "sources": [],
    }  # fmt: skip
