"""A folder that one process writes at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moembed.files import locked
from moembed.types import UserError

HOLD = """
import pathlib, sys, time
from moembed.files import locked

with locked(pathlib.Path("run")):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_user_is_refused_and_the_lock_vanishes_with_the_first(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "mine"
    with locked(path):
        complaint = rf"mine is in use by another process \({os.getpid()}\)"
        with pytest.raises(UserError, match=complaint), locked(path):
            pass
        with locked(tmp_path / "runs" / "other"):
            pass
    with locked(path):
        pass
    assert list((tmp_path / "runs").iterdir()) == []


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=str(process.pid)), locked(tmp_path / "run"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with locked(tmp_path / "run"):
        pass
