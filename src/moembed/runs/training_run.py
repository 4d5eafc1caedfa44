"""What every training run says and writes before its first step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import yaml

from moembed.config import Config, Strict, config_hash, dump, load, resolve
from moembed.data.files import is_pattern
from moembed.data.sources import Source
from moembed.files import require_free, write_text
from moembed.machine import choose_precision, write_made
from moembed.training.parallel import World
from moembed.types import UserError

ENDS = {"steps", "epochs", "minutes"}  # one of them ends a run


class Trainable(Protocol):
    """A model that knows its size and where it is."""

    @property
    def device(self) -> str: ...

    def num_parameters(self, active: bool = False) -> int: ...


def load_run(kind: type[Config], path: Path | None, overrides: Sequence[str]) -> Config:
    """Read a recipe; an end of the run among the overrides replaces the file's."""
    given = {override.partition("=")[0] for override in overrides}
    dropped = [f"{end}=null" for end in sorted(ENDS - given)] if ENDS & given else []
    return load(kind, path, [*dropped, *overrides])


def resolve_run(kind: type[Config], given: Any, overrides: Mapping[str, Any]) -> Config:
    """The same for what Python callers pass."""
    ends = dict.fromkeys(ENDS - overrides.keys()) if ENDS & overrides.keys() else {}
    return resolve(kind, given, {**ends, **overrides})


def says_task(recipe: Path, overrides: Sequence[str], task: str) -> bool:
    """Whether a recipe, or an override, names this task. What is wrong with it, its reader says."""
    if any(override.partition("=")[0] == "task" for override in overrides):
        return f"task={task}" in overrides
    try:
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("task") == task


def tell_sources(sources: Iterable[Source], tell: Callable[[str], object]) -> None:
    """What each source holds, and what is to be known of it."""
    for source in sources:
        tell(source.describe())
        for note in source.notes:
            tell(f"note: {source.name}: {note}")


def require_outside_run(run: Path, paths: Iterable[str], reads: str) -> None:
    """Refuse to remove what is to be read.

    Raises:
        UserError: one of the paths or patterns lies in the run folder; the sentence begins with ``reads``.
    """
    for path in paths:
        there = Path(path).exists() or is_pattern(path)
        if there and Path(path).resolve().is_relative_to(run.resolve()):
            raise UserError(
                f"{reads} {path}, which --overwrite would remove with {run}: choose another folder for the "
                "run, or move it"
            )


@contextmanager
def written_aside(run: Path, name: str, resume: bool, world: World) -> Iterator[Path]:
    """Where a part of a run is written before the run's folder may be made: beside it, and gone at the end
    unless it was moved. Where the run goes on, its folder has the part already."""
    if resume:
        yield run / name
        return
    place = run.with_name(f".{run.name}.{name}")
    try:
        if world.first:
            shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
        yield place
    finally:
        if world.first:
            shutil.rmtree(place, ignore_errors=True)


def make_run_folder(run: Path, config: Strict, base: str, data: Iterable[str], overwrite: bool) -> None:
    """The run folder with its recipe, and what it is made of.

    Raises:
        UserError: it exists, and ``overwrite`` is false; the base or the data lie in it; ``.`` and the like.
    """
    if run.name in ("", ".."):
        raise UserError(f"{str(run)!r} is no name for a folder: name one in it, or give its full path")
    paths = [base, *data]
    if overwrite and run.exists():
        require_outside_run(run, paths, "the run reads")
    require_free(run, overwrite)
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / "recipe.yaml", dump(config))
    write_made(run, base=base, data=", ".join(paths[1:]))


def model_facts(model: Trainable, config: Strict, precision: str, world: World) -> str:
    """One line: parameters, precision, the hash of the recipe, and processes where there are several."""
    return (
        f"{model.num_parameters():,} parameters, {model.num_parameters(active=True):,} active, "
        f"{choose_precision(precision, model.device)}, recipe {config_hash(config)}"
        + (f", {world.size} processes" if world.size > 1 else "")
    )
