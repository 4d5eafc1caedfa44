"""Files and folders that are whole or absent, and JSON."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from moembed.types import UserError


def read_json(path: Path, kind: type = dict) -> Any:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(values, kind):
        raise UserError(f"{path} holds a {type(values).__name__} where a {kind.__name__} is expected")
    return values


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write under a temporary name, then replace: the file is whole or absent, whatever happens."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"cannot write {path}: {error}; earlier parts are kept, mend this and run the same command again"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path`` that takes its place when the block ends well and vanishes when not.

    Raises:
        UserError: the disk is full or not writable.
    """
    fresh, old = (path.with_name(f".{path.name}.{word}") for word in ("new", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)  # left by a process that was killed
        fresh.mkdir()
        yield fresh
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        fresh.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"could not write {path} ({error})") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def require_free(path: Path, overwrite: bool) -> None:
    """Refuse to write over an existing folder unless told to; then remove it.

    Only what moembed wrote (a run or a model folder) is ever removed.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{path} already exists: choose another folder, or replace it with --overwrite")
    ours = ("recipe.yaml", "report.json", "metrics.jsonl", "config.json", "tokenizer.json")
    if not any((path / name).exists() for name in ours):
        raise UserError(f"{path} is not a run or model folder, so --overwrite leaves it alone")
    shutil.rmtree(path)
