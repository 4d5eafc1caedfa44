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
from moembed.embedder import Embedder
from moembed.files import require_replaceable
from moembed.folder.bases import read_base
from moembed.runs.dry_run import Plan, dry_run, dry_run_reranker, given_settings
from moembed.runs.merge import checked_weights
from moembed.runs.pretrain import PretrainConfig
from moembed.runs.stage_inputs import require_outside, require_sources
from moembed.runs.stage_keys import MergeConfig
from moembed.runs.stages import Stage, StagesPlan
from moembed.runs.text_plans import dry_run_distillation, dry_run_pretraining
from moembed.runs.train import TrainConfig
from moembed.runs.train_reranker import RerankerConfig
from moembed.runs.train_stages import merge_plan


def dry_run_stages(plan: StagesPlan, overwrite: bool = False, resume: bool = False) -> list[Plan]:
    """The plan of each stage, with its name.

    Raises:
        UserError: whatever a stage would refuse before its first step.
    """
    if not resume:
        require_replaceable(Path(plan.out), overwrite)
    require_sources(plan)
    if overwrite and not resume:
        require_outside(plan)
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
        return dry_run_pretraining(config, resume=True, keep=keep)
    return dry_run_distillation(config, resume=True, keep=keep)


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
