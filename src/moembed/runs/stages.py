"""Recipes of several stages: what each stage is told, and which model it starts from. Nothing is run here.

A recipe with the key ``stages`` holds a list of partial recipes, each with a task of its own::

    base: minilm
    out: runs/two
    data: mined.jsonl
    steps: 100
    stages:
      - {name: first}
      - {name: second, loss.in_batch: false, steps: 50}

Keys above the list are for all stages whose task has them with the same meaning; those of a stage replace
them, nested ones dotted. Keys that change the form of the model are for the first stage that can do it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from moembed.config import Strict, changed, parse_override, read_values, validate
from moembed.runs.stage_keys import FIRST, ONCE, TASKS, StageConfig, require_known, root_of, takes
from moembed.runs.training_run import ENDS, sections
from moembed.training.checkpoint import FREE
from moembed.types import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED = ("model",)


class _Outline(Strict):
    """The keys of the list itself."""

    out: str = Field(min_length=1)
    tolerance: float | None = Field(default=None, ge=0)
    stages: tuple[dict[str, Any], ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: ``start`` names the stage whose model it starts from; None: its config says the base."""

    name: str
    task: str
    start: str | None
    config: StageConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.out)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def values(self) -> dict[str, Any]:
        """The stage as a recipe has it, every key that was given."""
        told = self.config.model_dump(mode="json", exclude_unset=True, exclude={"out"})
        if self.start:
            told["from"] = self.start
            told.pop("base", None)
        return {"name": self.name, "task": self.task} | told

    def recipe(self, others: Sequence[str]) -> str:
        """Hash of what was asked for, but for what may change on resuming; keys of later versions leave it.

        Args:
            others: recipes of the stages before this one.
        """
        left_out = {*FREE} | ({"base"} if self.start else set())
        told = self.config.model_dump(mode="json", exclude_defaults=True, exclude=left_out)
        if self.task == "merge":  # of stages, their names
            told = {key: self._named(told[key]) if key in ("models", "base") else told[key] for key in told}
        facts = json.dumps([self.task, self.start, told, list(others)], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:12]

    def _named(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._named(one) for one in value]
        inside = Path(value).is_relative_to(self.folder.parent)
        return str(Path(value).relative_to(self.folder.parent)) if inside else value


@dataclass(frozen=True, slots=True)
class StagesPlan:
    """All stages of a recipe in their order; ``tolerance``: how much lower a score may become."""

    out: str
    tolerance: float | None
    stages: tuple[Stage, ...]

    def dump(self) -> str:
        """The recipe as it is run, every stage with all its keys."""
        values = {"out": self.out, "tolerance": self.tolerance}
        stages = [stage.values() for stage in self.stages]
        return yaml.safe_dump(values | {"stages": stages}, sort_keys=False, allow_unicode=True)

    def recipes(self) -> list[str]:
        """The recipe of every stage, those before it included."""
        found: list[str] = []
        for stage in self.stages:
            found.append(stage.recipe(found))
        return found


def load_stages(path: Path, overrides: Sequence[str]) -> StagesPlan:
    """`plan_stages` of a file and of overrides as the command line has them."""
    return plan_stages(read_values(path), read_values(dict(map(parse_override, overrides))))


def plan_stages(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> StagesPlan:
    """Read a recipe with stages; every stage is checked before any is run.

    Args:
        values: the keys of the recipe.
        overrides: dotted keys. ``stages.NAME.key`` is for one stage, any other for every stage that has it,
            whatever the stage says itself; ``base`` for those that start from no other stage.

    Raises:
        UserError: no stage, two of one name, one that starts from a later one, a wrong key or value.
    """
    overrides = dict(overrides or {})
    outline_keys = set(_Outline.model_fields)
    plain = {key: value for key, value in overrides.items() if root_of(key) != "stages"}
    whole: dict[str, Any] = {key: plain.pop(key) for key in ("out", "tolerance") if key in plain}
    outline = validate(_Outline, {k: v for k, v in values.items() if k in outline_keys} | whole)
    given = {key: value for key, value in values.items() if key not in outline_keys}
    common = sections(given)

    entries = [_entry(number, raw) for number, raw in enumerate(outline.stages, 1)]
    names = [entry.name for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two stages are called {twice[0]}: give them different names")
    own = _own_overrides({key: value for key, value in overrides.items() if key not in plain}, names, whole)
    tasks = [entry.task for entry in entries]
    reference = TASKS["contrastive" if "contrastive" in tasks else tasks[0]]
    require_known({**common, **plain}, [TASKS[task] for task in tasks], reference)
    common = _changed(common, {key: value for key, value in plain.items() if root_of(key) in FIRST})

    stages: list[Stage] = []
    done: set[str] = set()  # keys of ONCE that a stage has had
    for entry in entries:
        start = _start(entry, stages)
        taken = {
            key: value for key, value in common.items()
            if takes(TASKS[entry.task], reference, key) and key not in done and (key != "base" or not start)
        }  # fmt: skip
        done |= ONCE & taken.keys()
        told = _changed(_told(entry, taken, plain, reference), own.get(entry.name, {}))
        if entry.task == "merge":
            _require_before(entry.name, told, names[: len(stages)], names)
        stages.append(_stage(entry, start, told, outline.out, stages))
    return StagesPlan(outline.out, outline.tolerance, tuple(stages))


def _told(
    entry: _Entry, taken: Mapping[str, Any], overrides: Mapping[str, Any], reference: type[StageConfig]
) -> dict[str, Any]:
    """The keys of a stage: those from above the list, its own over them, then overrides for all stages."""
    for_all = {
        key: value for key, value in overrides.items()
        if takes(TASKS[entry.task], reference, root_of(key))
        and (root_of(key) not in FIRST or root_of(key) in entry.delta)
    }  # fmt: skip
    return _changed(_changed(_changed({}, taken), entry.delta), for_all)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of the list: ``start`` is what ``from`` names, ``delta`` its other keys."""

    name: str
    task: str
    start: str | None
    delta: dict[str, Any]


def _entry(number: int, raw: Mapping[str, Any]) -> _Entry:
    delta = dict(raw)
    name, task = delta.pop("name", f"stage-{number}"), delta.pop("task", "contrastive")
    start = delta.pop("from", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
        raise UserError(
            f"stage {number}: its name is that of a folder, which cannot be {name!r}: use letters, digits, -"
        )
    if task not in TASKS:
        close = difflib.get_close_matches(str(task), TASKS, n=1)
        hint = f", did you mean {close[0]}?" if close else ""
        raise UserError(f"stage {name}: task must be one of {', '.join(TASKS)}, not {task!r}{hint}")
    return _Entry(name, task, start, delta)


def _start(entry: _Entry, before: Sequence[Stage]) -> str | None:
    """The stage whose model a stage starts from: the one that it names, else the one before."""
    name, task, start, delta = entry.name, entry.task, entry.start, entry.delta
    if task == "merge":
        if start is not None:
            raise UserError(f"stage {name}: a merge has models, a list, and no from")
        return None
    if start is not None and "base" in delta:
        raise UserError(f"stage {name}: it starts from a stage or from a base: leave out from, or base")
    if "base" in delta or not before:
        if start is not None:
            raise UserError(f"stage {name}: from names {start!r}, and no stage is before this one")
        return None
    known = {stage.name: stage for stage in before}
    if start is None:
        start = before[-1].name
    if start not in known:
        raise UserError(
            f"stage {name}: from names {start!r}, which is no stage before it: {', '.join(known)}"
        )
    if known[start].task == "reranking" and task != "reranking":
        raise UserError(
            f"stage {name}: it would start from {start}, which is a reranker: name an embedder with from"
        )
    return start


def _require_before(name: str, told: Mapping[str, Any], before: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a merge of a stage that is not done by then."""
    models = told.get("models")
    asked = [told.get("base"), *(models if isinstance(models, (list, tuple)) else [])]
    if later := [one for one in asked if one in names and one not in before]:
        raise UserError(
            f"stage {name}: it merges {later[0]}, which is no stage before it: {', '.join(before) or 'none'}"
        )


def _own_overrides(
    given: Mapping[str, Any], names: Sequence[str], whole: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Of every stage, its own overrides, without ``stages.NAME.``."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        if key in whole:
            continue
        _, _, rest = key.partition(".")
        name, _, inner = rest.partition(".")
        if name not in names or not inner:
            raise UserError(
                f"override {key}: write stages.NAME.key=value, and for NAME one of {', '.join(names)}"
            )
        found.setdefault(name, {})[inner] = value
    return found


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """As `moembed.config.changed`; a new end of the training replaces the other one."""
    kept = {key: value for key, value in values.items() if not (ENDS & changes.keys() and key in ENDS)}
    return changed(kept, changes)


def _stage(
    entry: _Entry, start: str | None, told: dict[str, Any], out: str, before: Sequence[Stage]
) -> Stage:
    """The stage with its config, in which names of stages have become folders."""
    name, task = entry.name, entry.task
    models = {stage.name: str(stage.model) for stage in before}
    place = {"out": str(Path(out) / name)}
    if start is not None:
        place["base"] = models[start]
    if task in ("distillation", "reranking"):
        place["task"] = task
    if task == "merge":
        for key in ("models", "base"):
            value = told.get(key)
            if isinstance(value, (list, tuple)):
                told[key] = [models.get(one, one) if isinstance(one, str) else one for one in value]
            elif isinstance(value, str):
                told[key] = models.get(value, value)
    if wrong := {"out", "stages"} & told.keys():
        raise UserError(f"stage {name}: {min(wrong)} is for all stages: put it above the list")
    return Stage(name, task, start, validate(TASKS[task], told | place, f"stage {name}"))
