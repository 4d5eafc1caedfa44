"""Files and folders: whole or absent, one writer at a time, and a full disk is called a full disk."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from moembed.files import (
    locked,
    reason,
    replacing,
    require_replaceable,
    require_writable,
    unfinished,
    write_json,
    write_text,
    write_whole,
)
from moembed.types import UserError

HOLD = """
import sys, time
from pathlib import Path
from moembed.files import locked, replacing
with {how}(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


def another_process(how: str, path: Path) -> subprocess.Popen[str]:
    """A process that writes ``path`` until it is killed."""
    command = [sys.executable, "-c", HOLD.format(how=how), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    return process


@pytest.mark.parametrize("how", ["locked", "replacing"])
def test_a_second_process_is_refused_until_the_first_is_dead(how: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    context = {"locked": locked, "replacing": replacing}[how]
    other = another_process(how, path)
    try:
        with (
            pytest.raises(UserError, match=r"out is in use by another process.*: wait until it ends"),
            context(path),
        ):
            pass
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    with context(path):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == (["out"] if how == "replacing" else [])


def test_the_owner_of_a_lock_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "mine"
    complaint = rf"mine is in use by another process \({os.getpid()}\)"
    with locked(path), pytest.raises(UserError, match=complaint), locked(path):
        pass


def test_a_full_disk_takes_no_lock_hostage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "out"
    monkeypatch.setattr(os, "write", full)
    for _ in range(2):
        with locked(path), pytest.raises(UserError, match="out is in use by another process"), locked(path):
            pass


def test_a_lock_is_given_back_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "out"):
        raise ZeroDivisionError
    with locked(tmp_path / "out"), locked(tmp_path / "other"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"the disk is full \(No space left on device\)"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), r"your disk quota is used up"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc:664] unexpected pos"), "unexpected pos"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
    ],
)
def test_a_failed_write_is_one_sentence_and_the_old_file_stays(
    error: Exception, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file: object) -> None:
        raise error

    with pytest.raises(UserError, match=rf"^cannot write .*file: .*{said}.*; try again$"):
        write_whole(path, fail, "try again")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("file", "old")]


def test_an_error_of_the_program_is_no_failed_write(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), unfinished(tmp_path / "file"):
        raise RuntimeError("shapes differ")
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_takes_the_place_of_the_old(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a", "ü \ud800")
    write_json(tmp_path / "b.json", {"a": "ü"})
    assert (tmp_path / "new" / "a").read_text("utf-8") == "ü ?"
    assert (tmp_path / "b.json").read_text("utf-8") == '{\n  "a": "ü"\n}\n'
    with replacing(tmp_path / "new") as fresh:
        (fresh / "c").touch()
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["c"]


def test_a_device_is_written_to_and_not_replaced() -> None:
    write_text(Path("/dev/null"), "gone")
    require_writable(Path("/dev/null"))
    assert not Path("/dev/null").is_file()
    if Path("/dev/full").exists():
        with pytest.raises(UserError, match=r"cannot write /dev/full: the disk is full"):
            write_text(Path("/dev/full"), "no room")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a folder: name a file in it"):
        require_writable(tmp_path)
    with pytest.raises(UserError, match=r"cannot write .*file/a\.json"):
        require_writable(tmp_path / "file" / "a.json")
    require_writable(tmp_path / "new" / "a.json")
    assert list((tmp_path / "new").iterdir()) == []
    # of a folder too, and nothing is left of the look
    with pytest.raises(UserError, match=r"cannot write .*file/deep/model"):
        require_replaceable(tmp_path / "file" / "deep" / "model", overwrite=False)
    require_replaceable(tmp_path / "far" / "away" / "model", overwrite=False)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "new"]


def test_a_write_that_numpy_cut_is_a_full_disk() -> None:
    assert reason(OSError("768000 requested and 42976 written")).startswith("the disk seems to be full")


def test_the_folder_that_one_stands_in_is_locked_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "out"
    here.mkdir()
    (here / "before").touch()
    monkeypatch.chdir(here)
    with locked(Path(".")), pytest.raises(UserError, match="out is in use"), locked(here):
        pass
    with replacing(Path(".")) as made:
        (made / "after").touch()
    assert [entry.name for entry in here.iterdir()] == ["after"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
