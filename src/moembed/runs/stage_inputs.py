"""What the stages of a run read: pairs, texts, tasks and models, looked for before the first one begins."""

from __future__ import annotations

from pathlib import Path

from moembed.data.files import find
from moembed.folder.bases import locate_base
from moembed.runs.stage_keys import MergeConfig, StageConfig
from moembed.runs.stages import StagesPlan
from moembed.runs.training_run import require_outside_run
from moembed.types import UserError


def require_sources(plan: StagesPlan) -> None:
    """Look for the files and the models of all stages, so that the last one does not end for want of them.

    Raises:
        UserError: local files or models that are not there.
    """
    made = _made(plan)
    for stage in plan.stages:
        try:
            for path in filter(_is_local, source_paths(stage.config)):
                find(path)
            for path in looked_at(stage.config):
                if not Path(path).exists():
                    raise UserError(f"{path} does not exist")
            for model, revision, allow_pickle in models_of(stage.config):
                if Path(model) not in made:
                    locate_base(model, revision, allow_pickle)
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from None


def require_outside(plan: StagesPlan) -> None:
    """Refuse to remove with the folder of the run what its stages are to read.

    Raises:
        UserError: a model or data in that folder.
    """
    made = _made(plan)
    for stage in plan.stages:
        models = [model for model, *_ in models_of(stage.config) if Path(model) not in made]
        paths = [*models, *filter(_is_local, source_paths(stage.config)), *looked_at(stage.config)]
        require_outside_run(Path(plan.out), paths, f"stage {stage.name}: it reads")


def _made(plan: StagesPlan) -> set[Path]:
    """What the stages leave and later ones may name."""
    return {place for stage in plan.stages for place in (stage.model, stage.folder)}


def _is_local(path: str) -> bool:
    return path != "docstrings" and "://" not in path and not path.startswith("hf:")


def source_paths(config: StageConfig) -> list[str]:
    """Paths of what a stage reads."""
    if isinstance(config, MergeConfig):
        return [config.probe] if config.probe else []
    sources = [*config.data, *getattr(config, "validation", ())]
    return [source.path for source in sources]


def looked_at(config: StageConfig) -> list[str]:
    """Files and folders that a stage reads beside its pairs or texts; they are local ones."""
    evaluate, items = getattr(config, "evaluate", None), getattr(config, "item_pairs", None)
    found = [*(evaluate.tasks if evaluate else ()), *((items.vectors, items.items) if items else ())]
    return [path for path in found if path]


def models_of(config: StageConfig) -> list[tuple[str, str | None, bool]]:
    """Models that a stage starts from and asks, by name, revision and whether pickles are read. Servers and
    models of sentence-transformers are none of these: the stage itself finds them."""
    if isinstance(config, MergeConfig):
        return [(name, None, False) for name in (*config.models, config.base) if name]
    guide, scores, items = (getattr(config, key, None) for key in ("guide", "distill", "item_pairs"))
    asked = [guide and guide.model, *(scores.teachers or () if scores else ()), items and items.teacher]
    asked.append(getattr(config, "teacher", None))
    base = (config.base, getattr(config, "revision", None), getattr(config, "allow_pickle", False))
    named = [name for name in asked if name and "://" not in name and not name.startswith("st:")]
    return [base, *((name, None, False) for name in named)]
