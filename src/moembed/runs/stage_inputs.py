"""What the stages of a run read: pairs, texts, tasks and models, looked for before the first one begins."""

from __future__ import annotations

from pathlib import Path

from moembed.data.files import find
from moembed.folder.bases import locate_base
from moembed.runs.inputs import inputs, is_local, looked_at, models_of, require_outside_run, source_paths
from moembed.runs.stages import StagesPlan
from moembed.types import UserError


def require_sources(plan: StagesPlan) -> None:
    """Look for the files and the models of all stages, so that the last one does not end for want of them.
    Servers and models of sentence-transformers are found by the stage itself.

    Raises:
        UserError: local files or models that are not there.
    """
    made = _made(plan)
    for stage in plan.stages:
        base, revision = getattr(stage.config, "base", None), getattr(stage.config, "revision", None)
        allow_pickle = getattr(stage.config, "allow_pickle", False)
        try:
            for path in filter(is_local, source_paths(stage.config)):
                find(path)
            for path in looked_at(stage.config):
                if not Path(path).exists():
                    raise UserError(f"{path} does not exist")
            for model in models_of(stage.config):
                if Path(model) in made or "://" in model or model.startswith("st:"):
                    continue
                # those that are asked, and not trained, have no revision
                locate_base(model, *((revision, allow_pickle) if model == base else ()))
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from None


def require_outside(plan: StagesPlan) -> None:
    """Refuse to remove with the folder of the run what its stages are to read.

    Raises:
        UserError: a model, data or a cache in that folder.
    """
    made = _made(plan)
    for stage in plan.stages:
        paths = [path for path in inputs(stage.config) if Path(path) not in made]
        require_outside_run(Path(plan.out), paths, f"stage {stage.name}: it reads")


def _made(plan: StagesPlan) -> set[Path]:
    """What the stages leave and later ones may name."""
    return {place for stage in plan.stages for place in (stage.model, stage.folder)}
