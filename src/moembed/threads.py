"""The cores this process may use, and how PyTorch's threads wait on them.

PyTorch splits every product among OpenMP threads, which meet at its end. A thread that waits keeps its core
busy for milliseconds by default. Where another process needs that core, the thread that is waited for does
not get it, and every product takes as long as the system's time slices. OpenMP reads what is set here once,
when PyTorch is loaded; the processes that this one starts inherit it. What the user has set stays.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SPIN = "2000"  # rounds of the waiting loop: 20 to 100 microseconds, as long as the calls between two products
_GROUPS = Path("/sys/fs/cgroup")


def limit_threads() -> None:
    """As many threads as a container may keep cores busy, where it sees more cores than that."""
    cores = available_cores()
    if "torch" not in sys.modules and "OMP_NUM_THREADS" not in os.environ and cores < visible_cores():
        os.environ["OMP_NUM_THREADS"] = str(cores)


def share_cores() -> None:
    """Let waiting threads sleep soon: for work on many texts, which other processes may run beside.

    A single query on a quiet machine is answered sooner by threads that do not sleep, so importing moembed
    does not set this. Without effect once PyTorch is loaded, so then nothing is set.
    """
    if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN


def visible_cores() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_cores(groups: Path = _GROUPS) -> int:
    """The cores this process may keep busy: those it may run on, or fewer where its container has a quota.

    A quota of two and a half cores is two; at least one.

    Args:
        groups: where the control groups of Linux lie, of either version.
    """
    quota = _quota(groups)
    return visible_cores() if quota is None else max(1, min(visible_cores(), int(quota)))


def _quota(groups: Path) -> float | None:
    """Cores' worth of time; None where there is no limit, or no control group."""
    second = _words(groups / "cpu.max")
    first = _words(groups / "cpu" / "cpu.cfs_quota_us") + _words(groups / "cpu" / "cpu.cfs_period_us")
    for limit, period in (words for words in (second, first) if len(words) == 2):
        if limit.isdecimal() and period.isdecimal() and int(period):  # "max" and -1 are no limit
            return int(limit) / int(period)
    return None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return []
