"""How a command ends: Ctrl-C, a reader that goes away, a full disk, odd terminals; and what is JSON."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rich.console

from conftest import Run
from moembed import console
from moembed.cli import main
from moembed.console import print_json, print_table, progress_bar, results_alone, say

MOEMBED = [sys.executable, "-m", "moembed"]


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``fails(error)``: `moembed inspect` meets this error in the middle of its work."""

    def set_error(error: BaseException) -> None:
        def describe(*_: object) -> None:
            raise error

        monkeypatch.setattr("moembed.runs.inspect.describe", describe)
        monkeypatch.setattr("moembed.folder.bases.locate_base", lambda *_, **__: Path("model"))

    return set_error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped: nothing more was written"),
        (EOFError("No data left in file"), 2, "error: a file ends before its content does (No data left in"),
        (MemoryError(), 2, "error: the memory of this machine is full"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 2, "error: the disk is full (No space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "error: your disk quota is used up"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "error: Permission denied (a/b)"),
    ],
)
def test_an_end_is_one_sentence(fails: Any, run: Run, error: BaseException, code: int, said: str) -> None:
    fails(error)
    found, out, err = run("inspect", "minilm")
    assert (found, out) == (code, "")
    assert err.startswith(said)
    assert err.count("\n") == 1
    assert "Aborted" not in err


def test_an_error_of_the_program_keeps_its_traceback(fails: Any, run: Run) -> None:
    fails(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        run("inspect", "minilm")


def test_without_arguments_there_is_help(run: Run) -> None:
    for arguments in ((), ("data",)):
        code, out, err = run(*arguments)
        assert code in (0, 2)
        assert "Usage" in out + err
        assert "error" not in err
    assert run("--version")[0] == 0


def piped(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MOEMBED, *arguments], capture_output=True, text=True, timeout=120, **options)


def test_a_reader_that_goes_away_leaves_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*MOEMBED, "train", "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (1, 141)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_under_the_output_is_said() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*MOEMBED, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the disk is full")
    assert done.stderr.count("\n") == 1


def test_a_terminal_without_unicode_shows_what_it_can(tmp_path: Path) -> None:
    name = "möle"
    done = piped("inspect", name, cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: m\\xf6le does not exist")


def test_closed_output_is_nobodys_traceback(tmp_path: Path) -> None:
    command = " ".join(f"'{part}'" for part in [*MOEMBED, "inspect", "nothing"])
    for closed in ("2>&-", ">&-", ">&- 2>&-"):
        done = subprocess.run(
            f"{command} {closed}", shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2, closed
        assert done.stdout == ""
        assert "Traceback" not in done.stderr


def test_json_stands_alone_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with results_alone(True):
        print("chatter of a library")
        print_json({"a": [float("nan"), (float("inf"), 1.5)], "b": "ü"})
        say("a note")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": [None, [None, 1.5]], "b": "ü"}
    assert err == "chatter of a library\na note\n"
    with results_alone(False):
        print("a table")
    assert capsys.readouterr().out == "a table\n"


def test_json_is_json_on_a_terminal_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", out)
    for value in ("möle", "möle \N{OWL}"):
        print_json({value: value})
    out.flush()
    first, second = out.buffer.getvalue().decode("latin-1").split("}\n{")  # type: ignore[attr-defined]
    assert json.loads(f"{first}}}") == {"möle": "möle"}
    assert json.loads(f"{{{second}") == {"möle \N{OWL}": "möle \N{OWL}"}


@pytest.mark.parametrize("name", ["a{1}.jsonl", "a[de].jsonl", "[/de]a.jsonl", "{task}"])
def test_names_are_shown_as_they_are(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    print_table(name, ["", "[x]"], [[name, "1"]])
    out = capsys.readouterr().out
    assert (out.count(name), out.count("[x]")) == (2, 1)
    monkeypatch.setattr(console, "Console", partial(rich.console.Console, force_terminal=True))
    with progress_bar(f"reading {name}", 2) as advance:
        advance(1)
    assert f"reading {name}" in capsys.readouterr().err


def test_without_a_terminal_a_line_says_how_far_and_how_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.time, "monotonic", lambda: 0)
    with progress_bar("embedding", 400) as advance:
        advance(20)
        monkeypatch.setattr(console.time, "monotonic", lambda: 30)
        advance(80)
        monkeypatch.setattr(console.time, "monotonic", lambda: 120)
        advance(300)
    assert capsys.readouterr().err.splitlines() == [
        "embedding: 100 of 400, ETA 1:30",
        "embedding: 400 of 400, ETA 0:00",
    ]


def test_main_gives_standard_output_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    assert main(["inspect", "nothing-here", "--json"]) == 2
    assert sys.stdout is before
    assert capsys.readouterr().out == ""


def test_a_time_ahead_never_has_sixty_seconds() -> None:
    times = {0.4: "0:00", 59.7: "1:00", 245: "4:05", 1739.9: "29:00", 3599.6: "1:00:00", 3845: "1:04:05"}
    assert {seconds: console.clock(seconds) for seconds in times} == times
