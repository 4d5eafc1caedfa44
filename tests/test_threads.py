"""How many threads there are and how they wait, set before PyTorch is loaded unless the user has set it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moembed import threads
from moembed.threads import SPIN, available_cores, visible_cores

VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def environment_after(script: str, **variables: str) -> str:
    """What a fresh process finds in its own environment after ``script``."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    script += "\nimport os; print('now', os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    out = subprocess.check_output([sys.executable, "-c", script], env=environment, text=True)
    return out.strip().splitlines()[-1]


COMMAND = "from moembed.cli import main; main(['export', '--help'])"


def test_waiting_threads_of_a_command_sleep_soon() -> None:
    assert environment_after(COMMAND) == f"now {SPIN} None"


def test_what_the_user_has_set_stays() -> None:
    assert environment_after(COMMAND, GOMP_SPINCOUNT="7") == "now 7 None"
    assert environment_after(COMMAND, OMP_WAIT_POLICY="ACTIVE") == "now None ACTIVE"


@pytest.mark.parametrize("script", ["import moembed", COMMAND.replace("export", "search")])
def test_single_queries_are_waited_for(script: str) -> None:
    assert environment_after(script) == "now None None"


def test_nothing_is_set_that_would_have_no_effect() -> None:
    assert environment_after("import sys; sys.modules['torch'] = sys\n" + COMMAND) == "now None None"


def test_no_more_threads_than_a_quota_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: 1)
    monkeypatch.setattr(threads, "visible_cores", lambda: 64)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "9")  # so that what stood there comes back
    monkeypatch.delenv("OMP_NUM_THREADS")
    threads.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),  # half a core
        ({"cpu.max": "99900000 100000"}, None),  # more than there are
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "no limit at all"}, None),
        ({}, None),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_a_quota_of_a_container_counts(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert available_cores(tmp_path) == (cores or visible_cores())
