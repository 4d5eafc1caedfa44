"""Files and folders that are whole or absent, one writer at a time, and JSON."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from moembed.types import UserError

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your disk quota is used up"}
_NUMPY_CUT = re.compile(r"\d+ requested and \d+ written")
_FULL_TEXTS = {"No space left": errno.ENOSPC, "os error 28": errno.ENOSPC, "uota exceeded": errno.EDQUOT}
_OURS = ("recipe.yaml", "report.json", "metrics.jsonl", "config.json", "tokenizer.json", "split.json")


class InUseError(UserError):
    """Another process holds the lock."""


def cache_folder() -> Path:
    """Where what may be made again is kept: ``$MOEMBED_CACHE``, by default ``~/.cache/moembed``."""
    return Path(os.environ.get("MOEMBED_CACHE") or Path.home() / ".cache" / "moembed")


def read_json(path: Path, kind: type = dict) -> Any:
    """The value of a JSON file.

    Raises:
        UserError: no such file, one that cannot be read, no JSON, or a value of another kind.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:  # a folder of that name, no permission
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except RecursionError:
        raise UserError(f"{path} is not valid JSON (nested too deeply)") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(values, kind):
        raise UserError(f"{path} holds a {type(values).__name__} where a {kind.__name__} is expected")
    return values


def write_json(path: Path, value: Any, advice: str = "") -> None:
    """Indented, whole or absent.

    Raises:
        UserError: the disk is full or not writable.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", advice)


def write_text(path: Path, text: str, advice: str = "") -> None:
    """As UTF-8, whole or absent; half of a surrogate pair, which UTF-8 lacks, becomes ``?``.

    Raises:
        UserError: the disk is full or not writable.
    """
    write_whole(path, lambda file: file.write(text.encode("utf-8", "replace")), advice)


def write_whole(path: Path, write: Callable[[BinaryIO], Any], advice: str = "") -> None:
    """``write`` to a temporary file, then put it in the place of ``path``: whole or absent, whatever happens.

    Args:
        advice: what the user does next, after a failure.

    Raises:
        UserError: the disk is full or not writable.
    """
    with unfinished(path, advice) as temporary, temporary.open("wb") as file:
        write(file)


@contextmanager
def unfinished(path: Path, advice: str = "") -> Iterator[Path]:
    """A name beside ``path`` to write to; it takes the place of ``path`` when the block ends well.

    Raises:
        UserError: the disk is full or not writable.
    """
    # of this thread alone: two writers of one file never share a name
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}.tmp")
    try:
        with writing(path, advice):
            if path.exists() and not (path.is_file() or path.is_dir()):
                yield path  # a pipe or /dev/stdout: there is nothing to replace
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def writing(path: Path, advice: str = "") -> Iterator[None]:
    """Turn what a failed write raises into one sentence that names ``path``.

    Raises:
        UserError: the disk is full or not writable.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if type(error) is RuntimeError and not _of_torch_writer(error):
            raise
        rest = f"; {advice}" if advice else ""
        raise UserError(f"cannot write {path}: {reason(error)}{rest}") from error


def reason(error: Exception) -> str:
    """Why the system refused, in plain words; a full disk is called a full disk."""
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    number = number or next((known for part, known in _FULL_TEXTS.items() if part in text), None)
    said = getattr(error, "strerror", None) or text
    if number is None and _NUMPY_CUT.search(text):  # numpy writes less than it should, and does not say why
        return f"the disk seems to be full ({text} items)"
    return f"{_FULL[number]} ({said})" if number in _FULL else said


def _of_torch_writer(error: RuntimeError) -> bool:
    """Torch tells a failed write as a RuntimeError, without a number."""
    return any(part in str(error) for part in (*_FULL_TEXTS, "PytorchStreamWriter", "inline_container"))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path`` that takes its place when the block ends well and vanishes when not.

    Raises:
        UserError: the disk is full or not writable, or another process writes there.
    """
    place = Path(os.path.abspath(path))  # "." has no name
    fresh, old = (place.with_name(f".{place.name}.{word}") for word in ("new", "old"))
    with writing(path):
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(fresh, path, folder=True)
        try:
            _empty(fresh)  # of what a killed process left
            yield fresh
            if place.exists():
                shutil.rmtree(old, ignore_errors=True)
                place.rename(old)
            fresh.rename(place)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            os.close(descriptor)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """``path`` is this process's alone inside the block; the lock lies beside it, so that it may be replaced.

    The system gives the lock of a process that died back, so no lock outlives its owner.

    Raises:
        InUseError: another process (or thread) holds it.
        UserError: the place is not writable.
    """
    place = Path(os.path.abspath(path))  # "." has no name
    inside = path.is_dir() and not (place.name and os.access(place.parent, os.W_OK))
    file = path / ".lock" if inside else place.with_name(f".{place.name}.lock")
    with writing(path):
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(file, path)
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        os.close(descriptor)


def _lock(place: Path, path: Path, folder: bool = False) -> int:
    """The descriptor that holds the lock on ``place``, a file or folder that is made if it is not there."""
    while True:
        if folder:
            place.mkdir(exist_ok=True)
        descriptor = os.open(place, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = "" if folder else os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise InUseError(
                f"{path} is in use by another process{f' ({owner})' if owner else ''}: "
                "wait until it ends, or choose another place"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
            note = f"{place.parent} is on a disk without locks: run one command on a folder at a time"
            warnings.warn(note, stacklevel=4)
        # the owner before may have removed it between our two calls: then the lock is on nothing
        if place.exists() and os.path.samestat(os.fstat(descriptor), place.stat()):
            if not folder:
                with suppress(OSError):  # on a full disk the lock holds, only nobody learns whose it is
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)


def require_writable(path: Path) -> None:
    """Refuse now a file that could not be written when everything has been computed.

    Raises:
        UserError: ``path`` is a folder, or its place is not writable.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it")
    with writing(path):
        if path.exists() and not path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _try_to_write(path.parent)


def _try_to_write(folder: Path) -> None:
    probe = folder / f".{threading.get_native_id()}.tmp"
    probe.touch()
    probe.unlink(missing_ok=True)


def require_free(path: Path, overwrite: bool) -> None:
    """Refuse to write over an existing folder unless told to; then remove it.

    Only what moembed wrote (a run or a model folder) is ever removed.
    """
    require_replaceable(path, overwrite)
    if path.exists():
        shutil.rmtree(path)


def require_replaceable(path: Path, overwrite: bool) -> None:
    """``require_free`` for what ``replacing`` writes: the old folder stays until the new one is whole.

    Raises:
        UserError: there is something that may not be replaced, or the place is not writable.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        if not overwrite:
            raise UserError(f"{path} already exists: choose another folder, or replace it with --overwrite")
        if not any((path / name).exists() for name in _OURS):
            raise UserError(f"{path} is no folder that moembed wrote, so --overwrite leaves it alone")
    with writing(path):
        _try_to_write(next(folder for folder in path.absolute().parents if folder.exists()))
