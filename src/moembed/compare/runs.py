"""Which systems to compare, as a command line names them: files of scores, one or several per system."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path

from moembed.compare.scores import Scores, load_scores
from moembed.types import UserError

Seeds = list[dict[str, Scores]]


def read_runs(runs: Sequence[str]) -> dict[str, Seeds]:
    """name -> an entry per seed -> task -> scores, in the order given.

    A run is a file that ``save_scores`` wrote, or several, one per seed of the same system: a folder, or a
    pattern such as ``scores/moe-*.parquet``. It is called as its system was when it was evaluated;
    ``NAME=RUN`` calls it otherwise, and takes files for seeds of one system whatever they were called.

    Raises:
        UserError: nothing there, no file of scores, a folder of several systems, two seeds that are the same
            model, or two runs of the same name.
    """
    systems: dict[str, Seeds] = {}
    for run in runs:
        name, seeds = _read(run)
        if name in systems:
            raise UserError(f"two runs are called {name}: give them other names, as in new={run}")
        systems[name] = seeds
    return systems


def only(systems: Mapping[str, Seeds], metric: str) -> dict[str, Seeds]:
    """The tasks that have the metric, by that metric alone.

    Raises:
        UserError: a system that has it on no task.
    """
    chosen: dict[str, Seeds] = {}
    for name, seeds in systems.items():
        chosen[name] = [
            {
                task: replace(scores, values={metric: scores.values[metric]})
                for task, scores in seed.items()
                if metric in scores.values
            }
            for seed in seeds
        ]
        if not all(chosen[name]):
            known = sorted({known for seed in seeds for scores in seed.values() for known in scores.values})
            raise UserError(f"{name} was not scored by {metric!r}; it has {', '.join(known)}")
    return chosen


def _read(run: str) -> tuple[str, Seeds]:
    named = re.fullmatch(r"([^/=]+)=(.+)", run)
    name, path = (named[1], Path(named[2])) if named and not Path(run).exists() else ("", Path(run))
    files = _files(path)
    loaded = {file: load_scores(file) for file in files}
    called = {str(about.get("system", file.stem)) for file, (_, about) in loaded.items()}
    if len(called) > 1 and not name:
        raise UserError(
            f"{path} holds several systems ({', '.join(sorted(called))}): name their files one by one, or, "
            f"if they are seeds of one system, write NAME={path}"
        )
    models: dict[str, Path] = {}
    for file, (_, about) in loaded.items():
        space = about.get("space_id")
        if space and models.setdefault(space, file) != file:
            raise UserError(
                f"{models[space]} and {file} are of the same model: a seed is a training of its own"
            )
    return name or called.pop(), [{task.task: task for task in scores} for scores, _ in loaded.values()]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
    elif not path.exists() and any(mark in str(path) for mark in "*?["):
        files = sorted(map(Path, glob(str(path))))
    else:
        return [path]
    if not files:
        raise UserError(f"there is no file of scores (.parquet) in {path}")
    return files
