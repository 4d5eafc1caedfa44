"""What every training run says and writes before its first step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import yaml

from moembed.config import (
    Config,
    Strict,
    changed,
    config_hash,
    dump,
    load,
    parse_override,
    read_values,
    resolve,
)
from moembed.console import say
from moembed.data.sources import Source
from moembed.files import require_free, write_text
from moembed.machine import choose_precision, write_made
from moembed.runs.inputs import require_new_run
from moembed.training.parallel import World
from moembed.types import UserError

STAGES = {"stages", "tolerance"}  # keys of a recipe of several runs alone
ENDS = {"steps", "epochs", "minutes"}  # one of them ends a run


class Trainable(Protocol):
    """A model that knows its size and where it is."""

    @property
    def device(self) -> str: ...

    def num_parameters(self, active: bool = False) -> int: ...


def load_run(kind: type[Config], path: Path | None, overrides: Sequence[str]) -> Config:
    """Read a recipe; an end of the run among the overrides replaces the file's. ``stages=null`` leaves its
    stages out."""
    if path and drops_stages(overrides):
        values = dict(map(parse_override, overrides))
        if has_stages(path):
            say(f"the stages of {path} are left out: this is one run of the keys above them")
        return resolve_run(kind, path, values)
    given = {override.partition("=")[0] for override in overrides}
    dropped = [f"{end}=null" for end in sorted(ENDS - given)] if ENDS & given else []
    return load(kind, path, [*dropped, *overrides])


def resolve_run(kind: type[Config], given: Any, overrides: Mapping[str, Any]) -> Config:
    """The same for what Python callers pass."""
    if not isinstance(given, Strict) and overrides.get("stages", "") is None:
        values = {key: value for key, value in read_values(given).items() if key not in STAGES}
        given = sections(values)
        overrides = {key: value for key, value in overrides.items() if key not in STAGES}
    ends = dict.fromkeys(ENDS - overrides.keys()) if ENDS & overrides.keys() else {}
    return resolve(kind, given, {**ends, **overrides})


def sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a recipe with dotted ones put into their sections, as may stand above stages."""
    # whole sections first, so that none takes back what a dotted key sets in it
    return changed({}, dict(sorted(values.items(), key=lambda item: "." in str(item[0]))))


def has_stages(recipe: Path, overrides: Sequence[str] = ()) -> bool:
    """Whether a recipe has the key ``stages``, and no override takes it away. What is wrong with it, its
    reader says."""
    return not drops_stages(overrides) and _keys(recipe).get("stages") is not None


def drops_stages(overrides: Sequence[str]) -> bool:
    """Whether the last override of ``stages`` says null."""
    said = [override for override in overrides if override.partition("=")[0] == "stages"]
    return bool(said) and parse_override(said[-1])[1] is None


def says_task(recipe: Path, overrides: Sequence[str], task: str) -> bool:
    """Whether a recipe, or an override, names this task. What is wrong with it, its reader says."""
    if any(override.partition("=")[0] == "task" for override in overrides):
        return f"task={task}" in overrides
    return bool(_keys(recipe).get("task") == task)


def _keys(recipe: Path) -> dict[str, Any]:
    """The keys of a recipe; none of one that cannot be read."""
    try:
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def tell_sources(sources: Iterable[Source], tell: Callable[[str], object]) -> None:
    """What each source holds, and what is to be known of it."""
    for source in sources:
        tell(source.describe())
        for note in source.notes:
            tell(f"note: {source.name}: {note}")


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
        UserError: it exists, and ``overwrite`` is false; the run reads something in it; ``.`` and the like.
    """
    if run.name in ("", ".."):
        raise UserError(f"{str(run)!r} is no name for a folder: name one in it, or give its full path")
    require_new_run(run, config, overwrite)
    require_free(run, overwrite)
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / "recipe.yaml", dump(config))
    write_made(run, base=base, data=", ".join(data))


def model_facts(model: Trainable, config: Strict, precision: str, world: World) -> str:
    """One line: parameters, precision, the hash of the recipe, and processes where there are several."""
    return (
        f"{model.num_parameters():,} parameters, {model.num_parameters(active=True):,} active, "
        f"{choose_precision(precision, model.device)}, recipe {config_hash(config)}"
        + (f", {world.size} processes" if world.size > 1 else "")
    )
