"""A run of several stages: each as a run of its own in a folder of the whole, one after the other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from moembed.config import read_values
from moembed.console import say
from moembed.files import locked, read_json, replacing, require_free, write_json, write_text
from moembed.runs.distill import distill
from moembed.runs.merge import MergePlan, merge
from moembed.runs.pretrain import pretrain
from moembed.runs.stage_inputs import require_outside, require_sources
from moembed.runs.stage_keys import MergeConfig
from moembed.runs.stages import Stage, StagesPlan, plan_stages
from moembed.runs.train import train
from moembed.runs.train_reranker import train_reranker
from moembed.runs.training_run import has_stages
from moembed.training.checkpoint import latest
from moembed.training.log import read_metrics
from moembed.training.parallel import World, joined
from moembed.types import UserError

DONE = "stages.json"  # of the run folder: the stages that are finished


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage left.

    Attributes:
        recipe: hash of its recipe and of those before it.
        model: the folder of its model, inside that of the whole run.
        score: of the last evaluation of the stage, if it has any; ``texts`` says what it was measured on.
        stopped_by_user: whether Ctrl-C or SIGTERM ended it early.
    """

    stage: str
    task: str
    recipe: str
    model: str
    steps: int
    seconds: float
    metric: str | None = None
    score: float | None = None
    texts: str | None = None
    stopped_by_user: bool = False


@dataclass(frozen=True, slots=True)
class StagesResult:
    """What a run of several stages leaves.

    Attributes:
        run: its folder, with one for each stage.
        model: the model of the last stage, a copy.
        stages: those that are finished, and the one that was stopped.
    """

    run: str
    model: str
    stages: tuple[StageResult, ...]
    stopped_by_user: bool


def train_stages(
    config: StagesPlan | Mapping[str, Any] | str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    **overrides: Any,
) -> StagesResult:
    """Carry out a recipe of several stages, as ``moembed train`` does; in each process of ``torchrun``.

    A stage starts from the model of the one before it, or of the one that it names. With ``resume`` finished
    stages are left as they are, and the stage that was interrupted goes on from its newest checkpoint.

    Args:
        config: what `moembed.runs.stages.plan_stages` gives, or a mapping or a YAML file for it.
        overrides: as that function takes them, for instance ``**{"stages.second.steps": 20}``.

    Raises:
        UserError: what `plan_stages` and the stages refuse, data that is not there, a folder that exists, a
            finished stage whose recipe has changed.
    """
    if isinstance(config, StagesPlan):
        if overrides:
            raise UserError("a plan of stages is fixed: pass overrides to plan_stages")
        plan = config
    else:
        plan = plan_stages(read_values(config), read_values(overrides))
    with joined() as world, locked(Path(plan.out)) if world.first else nullcontext():
        return _run(plan, resume, overwrite, world)


def _run(plan: StagesPlan, resume: bool, overwrite: bool, world: World) -> StagesResult:
    run = Path(plan.out)
    tell: Callable[[str], object] = say if world.first else lambda text: None
    with world.first_ahead():
        if resume and not run.is_dir():
            raise UserError(f"{run} does not exist, so there is nothing to resume")
        if resume and not has_stages(run / "recipe.yaml"):
            raise UserError(f"{run} is no run of several stages, so there is nothing to resume")
        require_sources(plan)
        if overwrite and not resume:
            require_outside(plan)
        finished = _finished(plan) if resume else []
        if world.first and not resume:
            require_free(run, overwrite)
            run.mkdir(parents=True, exist_ok=True)
            write_text(run / "recipe.yaml", plan.dump())
    finished = world.broadcast(finished)
    for result in finished:
        tell(f"stage {result.stage} is finished and stays as it is")

    for number, (stage, recipe) in enumerate(zip(plan.stages, plan.recipes(), strict=True), 1):
        if number <= len(finished):
            continue
        tell(f"stage {number} of {len(plan.stages)}, {stage.name}: {stage.task}")
        result = _carry_out(stage, recipe, world)
        finished.append(result)
        if result.stopped_by_user:
            tell(
                f"stage {stage.name} was stopped; go on with it and the stages after it: "
                f"moembed train {run / 'recipe.yaml'} --resume"
            )
            return StagesResult(str(run), str(stage.model), tuple(finished), stopped_by_user=True)
        if world.first:
            write_json(run / DONE, [asdict(result) for result in finished])
    return _end(plan, finished, world, tell)


def _end(
    plan: StagesPlan, finished: list[StageResult], world: World, tell: Callable[[str], object]
) -> StagesResult:
    """The model of the last stage becomes that of the run."""
    model = Path(plan.out) / "model"
    with world.first_ahead():
        if world.first:
            with replacing(model) as fresh:
                shutil.copytree(plan.stages[-1].model, fresh, dirs_exist_ok=True)
    for sentence in score_changes(finished, plan.tolerance):
        tell(sentence)
    tell(f"{len(finished)} stages; the model of the last one, {finished[-1].stage}, is in {model}")
    return StagesResult(plan.out, str(model), tuple(finished), stopped_by_user=False)


def _carry_out(stage: Stage, recipe: str, world: World) -> StageResult:
    """Run a stage: from its newest checkpoint, or from the start where it has none."""
    resume = world.broadcast(latest(stage.folder) is not None if world.first else False)
    if world.first and not resume and stage.folder.exists():
        shutil.rmtree(stage.folder)  # of a stage that was interrupted before its first checkpoint
    if isinstance(stage.config, MergeConfig):
        with world.first_ahead():
            if world.first:
                merge(stage.config.models, stage.model, merge_plan(stage.config))
        return StageResult(stage.name, stage.task, recipe, f"{stage.name}/model", 0, 0.0)
    done = _RUNNERS[stage.task](stage.config, resume=resume)
    last = last_scored(stage.folder)
    return StageResult(
        stage.name, stage.task, recipe, f"{stage.name}/model", done.steps, done.seconds,
        last.get("evaluation_metric"), last.get("evaluation_mean"), last.get("evaluation_texts"),
        done.stopped_by_user,
    )  # fmt: skip


_RUNNERS: dict[str, Callable[..., Any]] = {
    "contrastive": train,
    "pretraining": pretrain,
    "distillation": distill,
    "reranking": train_reranker,
}


def last_scored(run: Path) -> dict[str, Any]:
    """The last line of the metrics of a run with a score of an evaluation, which may be 0; else none."""
    lines = read_metrics(run / "metrics.jsonl")[::-1]
    return next((line for line in lines if line.get("evaluation_mean") is not None), {})


def merge_plan(config: MergeConfig) -> MergePlan:
    """The same as `moembed.runs.merge.merge` takes it."""
    return MergePlan(config.method, config.weights, config.base, config.scale, config.density, config.probe)


def _finished(plan: StagesPlan) -> list[StageResult]:
    """The stages that need not be done again.

    Raises:
        UserError: one of them was made with another recipe, or has no model any more.
    """
    file = Path(plan.out) / DONE
    if not file.exists():
        return []
    try:
        found = [StageResult(**entry) for entry in read_json(file, list)]
    except TypeError:
        raise UserError(f"{file} is not what a run of stages wrote: train into another folder") from None
    for number, result in enumerate(found):
        if number >= len(plan.stages) or plan.stages[number].name != result.stage:
            raise UserError(
                f"{plan.out} has finished stage {result.stage}, which is not stage {number + 1} of this "
                "recipe; resume with its own recipe.yaml, or train into another folder"
            )
        if plan.recipes()[number] != result.recipe:
            raise UserError(
                f"stage {result.stage} in {plan.out} was finished with another recipe; resume with its own "
                "recipe.yaml, or train into another folder"
            )
        if not (plan.stages[number].model / "config.json").is_file():
            raise UserError(
                f"stage {result.stage} is finished, and its model {plan.stages[number].model} is gone: train "
                "into another folder"
            )
    return found


def score_changes(results: list[StageResult], tolerance: float | None) -> list[str]:
    """How the score of an evaluation changed from stage to stage, a sentence each."""
    scored = [result for result in results if result.score is not None]
    told = []
    for before, now in pairwise(scored):
        assert before.score is not None
        assert now.score is not None
        what = (
            f"{now.metric} of stage {now.stage} {now.score:.4f}, of stage {before.stage} {before.score:.4f}"
        )
        if before.metric != now.metric:
            told.append(f"{what}: other measures, so they do not compare")
            continue
        if before.texts != now.texts:
            told.append(
                f"{what}: measured on other texts, so they do not compare; where the tasks are the same, "
                "evaluate.budget_seconds was too short for all of their queries"
            )
            continue
        change = now.score - before.score
        if tolerance is None:
            told.append(f"{what}: {change:+.4f}")
        elif change >= -tolerance:
            told.append(f"{what}: {change:+.4f}, within the tolerance of {tolerance:g}")
        else:
            told.append(
                f"warning: {what}: {change:+.4f}, which the tolerance of {tolerance:g} does not allow"
            )
    return told
