"""What an experiment file says: one recipe, the cells that change it, the tasks all are evaluated on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from moembed.config import Strict, load, read_values, resolve
from moembed.runs.train import TrainConfig
from moembed.types import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ ,+-]*")


class ExperimentConfig(Strict):
    """``recipe`` holds keys of ``moembed train``; they go over those of ``recipe_file``, named from here.
    ``cells`` maps names to keys that replace those of the recipe, nested ones dotted:
    ``{"upcycle.router.top_k": 1}``. Every cell is compared to the one that ``control`` names. The name of the
    experiment is that of its file unless ``name`` says otherwise.

    ``conclusion`` is what you read in the tables, once there are any; the record prints it before them.

    ``tune`` trains every cell at several values of one key, ``{"optim.learning_rate": [1e-4, 4e-4]}``, and
    compares each cell at the value that is best for it.

    ``tasks`` are folders and files as ``moembed evaluate --tasks`` reads them; ``sample`` takes so many
    queries of each retrieval task. ``dims`` scores the vectors cut to so many coordinates as well.
    ``keep_models`` false removes the weights of a run once it is scored.
    """

    name: str = ""
    question: str = ""
    conclusion: str = ""
    recipe_file: str | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    cells: dict[str, dict[str, Any] | None] = Field(min_length=2)
    control: str
    tune: dict[str, tuple[float, ...]] = Field(default_factory=dict, max_length=1)
    tasks: tuple[str, ...] = Field(min_length=1)
    sample: int | None = Field(default=None, ge=1)
    dims: tuple[int, ...] = ()
    out: str | None = None
    keep_models: bool = True

    @field_validator("name")
    @classmethod
    def _names_a_file(cls, value: str) -> str:
        if value and not _NAME.fullmatch(value):
            raise ValueError(f"it names files and folders, which {value!r} cannot: use letters, digits and -")
        return value

    @field_validator("cells")
    @classmethod
    def _name_folders(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"a cell has a folder of its name, which cannot be {name!r}")
        return value

    @field_validator("tune")
    @classmethod
    def _choose_among_some(cls, value: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for key, values in value.items():
            if len(set(values)) < max(2, len(values)):
                raise ValueError(f"{key} has nothing to choose from: give two values and more, each once")
            names = [_told(one) for one in values]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{key} has two values that both read {twice[0]}: give values further apart")
        return value

    @model_validator(mode="after")
    def _tuned_once(self) -> ExperimentConfig:
        for tuned in self.tune:
            for name, changes in self.cells.items():
                if tuned in (changes or {}):
                    raise ValueError(
                        f"cell {name!r} sets {tuned}, which tune sets for every cell: leave it out"
                    )
                if section := [key for key in changes or {} if tuned.startswith(f"{key}.")]:
                    raise ValueError(
                        f"cell {name!r} sets the section {section[0]}, in which tune sets {tuned}: dot its "
                        f"keys, as in {section[0]}.key"
                    )
        return self

    @model_validator(mode="after")
    def _control_is_a_cell(self) -> ExperimentConfig:
        if self.control not in self.cells:
            raise ValueError(f"control {self.control!r} is no cell; the cells are {', '.join(self.cells)}")
        return self

    @property
    def variants(self) -> dict[str, Variant]:
        """What is trained, by its name: every cell, at every value of ``tune`` if there is one."""
        found: dict[str, Variant] = {}
        for cell, changes in self.cells.items():
            own = dict(changes or {})
            if not self.tune:
                found[cell] = Variant(cell, own)
            for key, values in self.tune.items():
                found |= {variant_name(cell, value): Variant(cell, own | {key: value}) for value in values}
        return found

    @property
    def evaluation(self) -> str:
        """Hash of what every run is evaluated on."""
        return _hash([self.tasks, self.sample, self.dims])

    @property
    def folder(self) -> Path:
        return Path(self.out or f"runs/experiments/{self.name}")


def variant_name(cell: str, value: float) -> str:
    """What a cell is called at one value of what is tuned."""
    return f"{cell} at {_told(value)}"


def _told(value: float) -> str:
    return f"{value:g}"


@dataclass(frozen=True, slots=True)
class Variant:
    """A cell, at one value of what is tuned."""

    cell: str
    changes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """One variant of a cell trained with one seed, where it lies, and `ExperimentConfig.evaluation`."""

    cell: str  # the name of the variant: that of the cell where nothing is tuned
    seed: int
    folder: Path
    config: TrainConfig
    evaluation: str

    @property
    def recipe(self) -> str:
        """Hash of what was asked for, wherever it lies; keys a later version adds do not change it."""
        return _hash(self.config.model_dump(mode="json", exclude_defaults=True, exclude={"out"}))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Plan:
    """All jobs of an experiment: a seed of every cell after the other, the control first.

    ``only`` are the cells, or variants of them, to run; none: all.
    """

    config: ExperimentConfig
    jobs: list[Job]
    seeds: int
    only: tuple[str, ...] = ()

    @property
    def chosen(self) -> list[Job]:
        variants = self.config.variants
        wanted = {name for name, variant in variants.items() if {name, variant.cell} & {*self.only}}
        return [job for job in self.jobs if not self.only or job.cell in wanted]

    def of(self, cell: str) -> list[Job]:
        return [job for job in self.jobs if job.cell == cell]


def read_plan(path: Path, overrides: Sequence[str], seeds: int, only: Sequence[str] = ()) -> Plan:
    """
    Args:
        overrides: ``key=value`` for the experiment file, such as ``recipe.steps=20``.
        only: cells to run; none: all.

    Raises:
        UserError: anything wrong with the file or with the recipe of a cell, cells of unequal steps, a cell
            in ``only`` that is not there.
    """
    config = load(ExperimentConfig, path, overrides)
    config = config if config.name else config.model_copy(update={"name": path.stem})
    variants = config.variants
    if unknown := [name for name in only if name not in {*config.cells, *variants}]:
        raise UserError(f"there is no cell {unknown[0]!r}; the cells are {', '.join(config.cells)}")
    common = _common(path.parent / config.recipe_file) if config.recipe_file else {}
    cells = {name: _cell(config, name, variant.changes, common) for name, variant in variants.items()}
    steps = {name: cell.steps for name, cell in cells.items()}
    if len(set(steps.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in steps.items())
        raise UserError(f"{path}: cells are compared after equal steps, but they differ ({told})")
    order = sorted(variants, key=lambda name: variants[name].cell != config.control)
    jobs = []
    for seed in range(seeds):
        for name in order:
            folder = config.folder / name / f"seed-{seed}"
            jobs.append(Job(name, seed, folder, _seeded(cells[name], seed, folder), config.evaluation))
    return Plan(config, jobs, seeds, tuple(only))


def _common(file: Path) -> dict[str, Any]:
    """The keys of ``recipe_file``, without the seed of new experts: as ``seed`` and ``out``, which the
    recipe of a finished run names too, it is set by the experiment."""
    values = read_values(file)
    if isinstance(upcycle := values.get("upcycle"), dict):
        upcycle.pop("seed", None)
    return values


def same_in_all_seeds(plan: Plan) -> list[str]:
    """What is said of cells whose new experts begin alike in every seed."""
    told = []
    for job, last in zip(plan.jobs, plan.jobs[-len(plan.jobs) // plan.seeds :], strict=False):
        for key in ("upcycle", "head"):
            part, other = getattr(job.config, key), getattr(last.config, key)
            if plan.seeds > 1 and part is not None and part.seed == other.seed:
                told.append(
                    f"note: cell {job.cell}: {key}.seed is {part.seed} in every seed, so what is random in "
                    "its new experts does not vary"
                )
    return told


def _cell(config: ExperimentConfig, name: str, changes: Mapping[str, Any], common: Any) -> TrainConfig:
    try:
        if reserved := {"out", "seed"} & {*changes, *config.recipe}:
            raise UserError(f"{min(reserved)} is set by the experiment: leave it out")
        told: dict[str, Any] = {"out": "unused", **config.recipe, **changes}
        # what is tuned comes last, so that no section takes it back
        last = {key: told.pop(key) for key in config.tune if key in told}
        cell = resolve(TrainConfig, common, told | last)
    except UserError as error:
        raise UserError(f"cell {name}: {error}") from None
    if cell.steps is None:
        raise UserError(f"cell {name}: an experiment counts in steps, so that all do as much: set steps")
    return cell


def _seeded(cell: TrainConfig, seed: int, folder: Path) -> TrainConfig:
    """The seed decides the order of the pairs, and what is random in new experts unless that has its own."""
    changes: dict[str, Any] = {"seed": seed, "out": str(folder / "run")}
    if cell.upcycle and "seed" not in cell.upcycle.model_fields_set:
        changes["upcycle"] = cell.upcycle.model_copy(update={"seed": seed})
    return cell.model_copy(update=changes)
