"""A suite: tasks that are evaluated together, named in a YAML file."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from moembed.config import Strict, load
from moembed.types import UserError


class SuiteConfig(Strict):
    """``tasks``: folders and files as `moembed.evaluation.files.load_any` reads them; a path that is not
    absolute starts at the folder of the YAML file. ``name``: default, that of the file."""

    tasks: tuple[str, ...] = Field(min_length=1)
    name: str | None = None


def load_suite(path: str | Path) -> tuple[str, list[Path]]:
    """The name of a suite, and where its tasks lie.

    Raises:
        UserError: no such file, keys that are not known, no tasks, a task that is not there, one named twice.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"no such suite: {file}")
    try:
        config = load(SuiteConfig, file)
    except UserError as error:
        raise UserError(str(error) if str(file) in str(error) else f"{file}: {error}") from None
    tasks = [file.parent / task for task in config.tasks]
    for task in tasks:
        if not task.exists():
            raise UserError(f"{file} names the task {task}, which does not exist")
    if len({task.resolve() for task in tasks}) < len(tasks):
        raise UserError(f"{file} names a task twice")
    return config.name or file.stem, tasks
