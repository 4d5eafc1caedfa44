"""Checkpoints: a model folder, the optimiser, the random state and how far the run is. Whole or not there.

The folders::

    run/checkpoints/step-000500/          loads as a model by itself
    run/checkpoints/step-000500/train/    optimiser.pt, state.json, recipe.yaml, manifest.json
    run/checkpoints/best/                 the best model so far, if the run looks at a measure of it

The manifest holds size and SHA-256 of every file: a checkpoint that a crash or a bad disk has damaged is
found out, set aside as ``step-000500.damaged``, and the one before is used.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml

from moembed.config import Strict, dump
from moembed.files import replacing
from moembed.training.parallel import World
from moembed.training.task import Stateful, Task
from moembed.types import UserError

FREE = ("out", "workers", "save_every", "keep_checkpoints")  # may differ when a run is resumed
RENAMED = {"dead_experts": "starving"}  # states that earlier versions wrote under another name
MANIFEST = "train/manifest.json"
RandomState = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands; the data position follows from ``step`` alone.

    ``data`` says of every source by name what it held, so that another one is not taken for it.
    """

    step: int = 0
    seconds: float = 0.0
    pairs: int = 0
    truncated: int = 0
    data: dict[str, str] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of a run; every method is for all processes together, and the first one writes.

    Args:
        states: what else must continue, by name.
        recipe: as which the run goes on, later.
    """

    def __init__(
        self, run: Path, task: Task[Any], optimiser: torch.optim.Optimizer, states: Mapping[str, Stateful],
        recipe: Strict, keep: int, world: World,
    ) -> None:  # fmt: skip
        self.run, self.task, self.optimiser, self.states = run, task, optimiser, states
        self.recipe, self.keep, self.world = recipe, keep, world

    def save(self, state: State) -> None:
        """Write ``step-NNNNNN`` under another name, move it into place, then drop all but the newest ones.

        Raises:
            UserError: the weights are not finite, the disk is full or not writable; earlier checkpoints are
                untouched.
        """
        self.require_finite(state.step)
        random = self.world.collect(random_state())
        if not self.world.first:
            return
        try:
            with replacing(self.run / "checkpoints" / f"step-{state.step:06d}") as fresh:
                self._write_model(fresh)
                (fresh / "train").mkdir()
                tensors = {
                    "optimiser": self.optimiser.state_dict(),
                    "random": random,
                    "extras": {name: part.state_dict() for name, part in self.states.items()},
                }
                torch.save(tensors, fresh / "train" / "optimiser.pt")
                (fresh / "train" / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
                (fresh / "train" / "recipe.yaml").write_text(dump(self.recipe), encoding="utf-8")
                manifest = {name: _digest(fresh / name) for name in _files(fresh)}
                (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        except (UserError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            kept = latest(self.run)
            before = f"{kept} is intact" if kept else "nothing was saved before"
            raise UserError(f"step {state.step} was not saved: {error}; {before}") from None
        for old in _all(self.run)[: -self.keep]:
            shutil.rmtree(old)

    def save_best(self, step: int, measure: str, value: float) -> None:
        """Put the model into ``checkpoints/best``, with the step and what it was chosen for."""
        self.require_finite(step)
        if not self.world.first:
            return
        with replacing(self.run / "checkpoints" / "best") as fresh:
            self._write_model(fresh)
            facts = {"step": step, measure: value}
            (fresh / "best.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")

    def restore(self, data: Mapping[str, str]) -> State:
        """Load the newest sound checkpoint into the task and the optimiser and set the random state.

        Args:
            data: what every source holds now.

        Raises:
            UserError: there is none, all are damaged, or it was made with another recipe or on other data.
        """
        folder = self.world.broadcast(_newest_sound(self.run) if self.world.first else None)
        assert folder is not None
        made_with = yaml.safe_load((folder / "train" / "recipe.yaml").read_text(encoding="utf-8"))
        _same_recipe(folder, made_with, self.recipe)
        state = State(**json.loads((folder / "train" / "state.json").read_text(encoding="utf-8")))
        if self.world.first:
            _same_data(folder, state, data)
        device = next(self.task.module.parameters()).device
        try:
            saved = torch.load(folder / "train" / "optimiser.pt", weights_only=True, map_location=device)
        except (RuntimeError, EOFError, UnpicklingError) as error:
            raise UserError(f"{folder} cannot be read by this version of torch ({error})") from None
        self.task.read(folder)
        self.optimiser.load_state_dict(saved["optimiser"])
        for name, part in self.states.items():
            found = next((key for key in (name, RENAMED.get(name)) if key in saved["extras"]), None)
            if found is not None:
                part.load_state_dict(saved["extras"][found])
            elif name in self.task.states():  # a monitor that is newer than the checkpoint starts afresh
                raise UserError(f"{folder} lacks the state of {name}; train into another folder")
        if self.world.rank < len(saved["random"]):  # more processes than before keep their own seeds
            _set_random_state(saved["random"][self.world.rank])
        return State(state.step, state.seconds, state.pairs, state.truncated, dict(data))

    def require_finite(self, step: int) -> None:
        """Refuse to keep weights that an update has broken: the loss would say so a step later, if at all.

        Raises:
            UserError: a parameter that is not finite, by name.
        """
        for name, parameter in self.task.module.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise UserError(
                    f"the weights are no longer finite after step {step} ({name}), so they were not saved; "
                    f"{last_good(self.run)}; try a lower optim.learning_rate or precision=float32"
                )

    def _write_model(self, folder: Path) -> None:
        self.task.write(folder / "model")
        for file in (folder / "model").iterdir():
            file.rename(folder / file.name)
        (folder / "model").rmdir()


def last_good(run: Path) -> str:
    """What a complaint says about where to go on."""
    kept = latest(run)
    return f"the last good checkpoint is {kept}" if kept else "no checkpoint had been written yet"


def latest(run: Path) -> Path | None:
    found = _all(run)
    return found[-1] if found else None


def random_state() -> RandomState:
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state()} | cuda


def _set_random_state(state: RandomState) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def _newest_sound(run: Path) -> Path:
    """The newest checkpoint without damage; newer ones are set aside: the run will pass their steps again."""
    found = _all(run)
    if not found:
        raise UserError(f"{run} has no checkpoint to resume from")
    problems = {folder: _damage(folder) for folder in found[::-1]}
    sound = next((folder for folder, problem in problems.items() if not problem), None)
    if sound is None:
        raise UserError(
            f"{found[-1]} is damaged ({problems[found[-1]]}), and so is every checkpoint before it"
        )
    for folder, problem in problems.items():
        if folder == sound:
            break
        aside = folder.with_name(f"{folder.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        warnings.warn(
            f"{folder} is damaged ({problem}) and was set aside; going on from {sound}", stacklevel=2
        )
    return sound


def _damage(folder: Path) -> str | None:
    """The first file that is not what was written, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return next(
            (f"{name} changed" for name, known in manifest.items() if _digest(folder / name) != known), None
        )
    except (OSError, ValueError, AttributeError) as error:
        return str(error)


def _digest(file: Path) -> str:
    """Size and SHA-256."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return f"{file.stat().st_size} {digest.hexdigest()}"


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _same_recipe(folder: Path, made_with: dict[str, Any], recipe: Strict) -> None:
    with suppress(ValueError):  # a key that is newer than the checkpoint had its default then
        made_with = yaml.safe_load(dump(type(recipe).model_validate(made_with)))
    before, now = (_lines(values) for values in (made_with, yaml.safe_load(dump(recipe))))
    changes = list(difflib.unified_diff(before, now, "the checkpoint", "this recipe", lineterm="", n=0))
    if changes:
        shown = "\n".join(line for line in changes if not line.startswith("@@"))
        raise UserError(
            f"{folder} was made with another recipe; resume with that one, or train into another folder:\n"
            f"{shown}"
        )


def _same_data(folder: Path, state: State, data: Mapping[str, str]) -> None:
    if not state.data:
        if data:
            warnings.warn(
                f"{folder} does not say what data it was trained on (an older version wrote it): that the "
                "data is the same was not checked",
                stacklevel=3,
            )
        return
    changes = [
        f"{name} had {_rows(state.data, name)} and now has {_rows(data, name)}"
        for name in sorted({*state.data, *data})
        if state.data.get(name) != data.get(name)
    ]
    if changes:
        raise UserError(
            f"the data changed since step {state.step}: {'; '.join(changes)}; "
            "put the data back as it was, or train into another folder"
        )


def _rows(data: Mapping[str, str], name: str) -> str:
    return data[name].replace(", ", " of content ") if name in data else "none"


def _lines(value: Any, key: str = "") -> list[str]:
    """``key.sub: value`` of everything that a resumed run must not change."""
    if not isinstance(value, dict):
        return [f"{key}: {json.dumps(value, ensure_ascii=False)}"]
    parts = (
        _lines(item, f"{key}.{name}" if key else str(name))
        for name, item in value.items()
        if key or name not in FREE
    )
    return [line for part in parts for line in part]


def _all(run: Path) -> list[Path]:
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))
