"""Checkpoints: a model folder, the optimiser, the random state and how far the run is. Whole or not there.

The folders::

    run/checkpoints/step-000500/          loads as a model by itself
    run/checkpoints/step-000500/train/    optimiser.pt, state.json, recipe.yaml
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch

from moembed.config import Strict, dump
from moembed.model.embedder import Embedder
from moembed.model.folder import read_folder, replacing, write_folder
from moembed.types import UserError


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands; the data position follows from ``step`` alone."""

    step: int
    seconds: float
    pairs: int
    truncated: int


def save(
    run: Path, model: Embedder, optimiser: torch.optim.Optimizer, state: State, recipe: Strict, keep: int
) -> None:
    """Write ``step-NNNNNN`` under another name, move it into place, then drop all but the newest ``keep``.

    Raises:
        UserError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    target = run / "checkpoints" / f"step-{state.step:06d}"
    try:
        with replacing(target) as fresh:
            write_folder(fresh / "model", model.parts())
            for file in (fresh / "model").iterdir():
                file.rename(fresh / file.name)
            (fresh / "model").rmdir()
            (fresh / "train").mkdir()
            rng = {"cpu": torch.get_rng_state()}
            if torch.cuda.is_available():
                rng["cuda"] = torch.cuda.get_rng_state()
            torch.save({"optimiser": optimiser.state_dict(), "rng": rng}, fresh / "train" / "optimiser.pt")
            (fresh / "train" / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
            (fresh / "train" / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    except (UserError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        kept = latest(run)
        before = f"{kept} is intact" if kept else "nothing was saved before"
        raise UserError(f"step {state.step} was not saved: {error}; {before}") from None
    for old in _all(run)[:-keep]:
        shutil.rmtree(old)


def latest(run: Path) -> Path | None:
    found = _all(run)
    return found[-1] if found else None


def restore(run: Path, model: Embedder, optimiser: torch.optim.Optimizer, recipe: Strict) -> State:
    """Load the newest checkpoint of ``run`` into ``model`` and ``optimiser`` and set the random state.

    Raises:
        UserError: there is none, it is damaged, or it was made with another recipe.
    """
    folder = latest(run)
    if folder is None:
        raise UserError(f"{run} has no checkpoint to resume from")
    try:
        made_with = (folder / "train" / "recipe.yaml").read_text(encoding="utf-8")
        state = State(**json.loads((folder / "train" / "state.json").read_text(encoding="utf-8")))
        saved = torch.load(folder / "train" / "optimiser.pt", weights_only=True, map_location=model.device)
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, UnpicklingError) as error:
        raise UserError(f"{folder} is damaged ({error}); delete it to resume from the one before") from None
    if made_with != dump(recipe):
        raise UserError(
            f"{folder} was made with another recipe; resume with the same one, or train into another folder"
        )
    model.encoder.load_state_dict(read_folder(folder).state)
    optimiser.load_state_dict(saved["optimiser"])
    torch.set_rng_state(saved["rng"]["cpu"].cpu())
    if "cuda" in saved["rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["rng"]["cuda"].cpu())
    return state


def _all(run: Path) -> list[Path]:
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))
