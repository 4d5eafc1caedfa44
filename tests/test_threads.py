"""How many threads there are and how they wait, set before PyTorch is loaded unless the user has set it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moembed.threads import SPIN, available_cores, visible_cores

VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def after_import(script: str = "", **variables: str) -> str:
    """What a fresh process prints of its own environment once moembed is imported."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    script += "import os, moembed; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    return subprocess.check_output([sys.executable, "-c", script], env=environment, text=True).strip()


def test_threads_wait_shortly() -> None:
    assert after_import() == f"{SPIN} None"


def test_what_the_user_has_set_stays() -> None:
    assert after_import(GOMP_SPINCOUNT="7") == "7 None"
    assert after_import(OMP_WAIT_POLICY="ACTIVE") == "None ACTIVE"


def test_nothing_is_set_that_would_have_no_effect() -> None:
    assert after_import("import sys; sys.modules['torch'] = sys;") == "None None"


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
