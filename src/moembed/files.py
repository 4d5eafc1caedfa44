"""Files and folders that are whole or absent, and JSON."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """``path`` is this process's alone inside the block; the lock lies beside it, so that it may be replaced.

    The system gives the lock of a process that died back, so no lock outlives its owner.

    Raises:
        UserError: another process (or thread) holds it.
    """
    file = path.with_name(f".{path.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = _lock(file)
    except OSError as error:
        raise UserError(f"cannot write {file}, which keeps other processes out of {path} ({error})") from None
    try:
        yield
    finally:
        with suppress(OSError):  # elsewhere a file that is open cannot be removed: it stays, and is harmless
            file.unlink()
        handle.close()


def _lock(file: Path) -> TextIO:
    while True:
        handle = file.open("a+", encoding="utf-8")
        try:
            _lock_whole(handle)
        except (BlockingIOError, PermissionError):
            handle.seek(0)
            owner = handle.read().strip()
            handle.close()
            path = file.with_name(file.name.removeprefix(".").removesuffix(".lock"))
            raise UserError(
                f"{path} is in use by another process{f' ({owner})' if owner else ''}: "
                "wait until it ends, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
            note = f"{file.parent} is on a disk without locks: run one command on a folder at a time"
            warnings.warn(note, stacklevel=4)
        if file.exists() and os.path.samestat(os.fstat(handle.fileno()), file.stat()):
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            return handle
        handle.close()  # its owner removed it in between: this lock is of a file that nobody will find


def _lock_whole(handle: TextIO) -> None:
    if sys.platform == "win32":
        import msvcrt

        handle.seek(1 << 20)  # a byte that nobody writes: the number of the process stays readable
        msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
