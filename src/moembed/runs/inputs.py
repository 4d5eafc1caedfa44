"""What a recipe reads: data, tasks, models, caches. A run that replaces its folder removes none of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from moembed.config import Strict
from moembed.data.files import is_pattern
from moembed.files import require_replaceable
from moembed.types import UserError


def require_new_run(run: Path, config: Strict, overwrite: bool) -> None:
    """Refuse a run folder that may not be replaced, before anything is read for it.

    Raises:
        UserError: it exists, and ``overwrite`` is false or it is none of ours; the run reads what is in it.
    """
    require_replaceable(run, overwrite)
    if overwrite and run.exists():
        require_outside_run(run, inputs(config), "the run reads")


def require_outside_run(run: Path, paths: Iterable[str], reads: str) -> None:
    """Refuse to remove what is to be read.

    Raises:
        UserError: one of the paths or patterns lies in the run folder; the sentence begins with ``reads``.
    """
    for path in paths:
        place = Path(path.removeprefix("st:"))
        if (place.exists() or is_pattern(path)) and place.resolve().is_relative_to(run.resolve()):
            raise UserError(
                f"{reads} {path}, which --overwrite would remove with {run}: choose another folder for the "
                "run, or move it"
            )


def inputs(config: Strict) -> list[str]:
    """All that a recipe of any task reads, as it names them; those of a hub or a server are among them."""
    caches = [getattr(part, "cache", None) for part in (config, *_parts(config))]
    found = [*models_of(config), *filter(is_local, source_paths(config)), *looked_at(config), *caches]
    return [path for path in found if path]


def is_local(path: str) -> bool:
    return path != "docstrings" and "://" not in path and not path.startswith("hf:")


def source_paths(config: Strict) -> list[str]:
    """Paths of the pairs or texts that a recipe reads; of a merge, those it learns weights on."""
    sources = [*getattr(config, "data", ()), *getattr(config, "validation", ())]
    probe = getattr(config, "probe", None)
    return [source.path for source in sources] + ([probe] if probe else [])


def looked_at(config: Strict) -> list[str]:
    """Files and folders that a recipe reads beside its pairs or texts; they are local ones."""
    evaluate, items = getattr(config, "evaluate", None), getattr(config, "item_pairs", None)
    found = [*(evaluate.tasks if evaluate else ()), *((items.vectors, items.items) if items else ())]
    return [path for path in found if path]


def models_of(config: Strict) -> list[str]:
    """Models that a recipe starts from, asks or merges: the base first."""
    guide, scores, items = _parts(config)
    asked = [getattr(config, "base", None), *getattr(config, "models", ()), getattr(guide, "model", None)]
    asked += [*(getattr(scores, "teachers", None) or ()), getattr(items, "teacher", None)]
    return [name for name in (*asked, getattr(config, "teacher", None)) if name]


def _parts(config: Strict) -> list[object]:
    """The sections that name models."""
    return [getattr(config, key, None) for key in ("guide", "distill", "item_pairs")]
