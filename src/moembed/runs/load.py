"""Was the machine busy with something else while a benchmark ran? Its figures are then not to be quoted.

Three signs: the CPU time that other processes took before the run, the same during each suite, and how far
the repeats of one contender lie apart. CPU time is the system's own count for the CPUs that this process may
use (``/proc/stat``), less that of this process and of its children that have ended. Where the system keeps no
such count, the load average before the run stands for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

OTHERS = 0.15  # CPUs that others may use on average
SPREAD = 0.10  # median over all rows of (interquartile range / median)
LOAD_AVERAGE = 0.5  # per CPU, where nothing better is known
SHORTEST, WAIT = 0.5, 1.0  # seconds of what can be judged, and of looking before the run


@dataclass(frozen=True, slots=True)
class Reading:
    """Clocks of one moment, in seconds: the wall's, the CPUs' busy time (None: not counted) and our own."""

    wall: float
    busy: float | None
    own: float


def read() -> Reading:
    user, system, children_user, children_system, wall = os.times()
    return Reading(wall, _busy(), user + system + children_user + children_system)


def _busy(file: Path = Path("/proc/stat")) -> float | None:
    """CPU seconds since the start of the system that were neither idle nor waiting for a disk; a hypervisor's
    other guests count as busy."""
    if not file.exists() or not hasattr(os, "sched_getaffinity"):
        return None
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = (line.split() for line in file.read_text().splitlines())
    # user, nice, system, idle, iowait, irq, softirq, steal
    ticks = sum(
        int(count)
        for name, *counts in lines
        if name in ours
        for place, count in enumerate(counts[:8])
        if place not in (3, 4)
    )
    return ticks / os.sysconf("SC_CLK_TCK")


def used_by_others(start: Reading, end: Reading) -> float | None:
    """CPUs that other processes used on average between two readings; None: not counted here, or the clocks,
    which tick a hundred times a second, cannot tell in so short a time."""
    if start.busy is None or end.busy is None or end.wall - start.wall < SHORTEST:
        return None
    return max(0.0, (end.busy - start.busy - (end.own - start.own)) / (end.wall - start.wall))


@dataclass(slots=True)
class Load:
    """What others did before the run and during each suite.

    Args:
        load_average: of the last minute, before the run.
        before: CPUs that others used just before the run; None: not counted here.
        during: the same of every suite by name.
    """

    cpus: int
    load_average: float
    before: float | None
    during: dict[str, float | None] = field(default_factory=dict)

    def facts(self) -> str:
        if self.before is None:
            return f"load average {self.load_average:.2f} on {self.cpus} CPUs before the run"
        counted = [used for used in self.during.values() if used is not None]
        during = f", at most {max(counted):.2f} during a suite" if counted else ""
        return f"other processes used {self.before:.2f} of {self.cpus} CPUs before the run{during}"

    def warning(self, spreads: Sequence[float]) -> str | None:
        """One sentence that says why the figures are not to be quoted; None if they may be.

        Args:
            spreads: interquartile range over the median of the repeats of every contender that had some.
        """
        moments = [("before the run", self.before)]
        moments += [(f"during {suite}", used) for suite, used in self.during.items()]
        busy = [f"{used:.2f} {moment}" for moment, used in moments if used is not None and used > OTHERS]
        reasons = [f"other processes used, of {self.cpus} CPUs, {', '.join(busy)}"] if busy else []
        if self.before is None and self.load_average > LOAD_AVERAGE * self.cpus:
            reasons.append(f"the load average before the run was {self.load_average:.2f} on {self.cpus} CPUs")
        if spreads and median(spreads) > SPREAD:
            reasons.append(f"the repeats of a contender typically lie {median(spreads):.0%} apart")
        if not reasons:
            return None
        return f"These figures are not to be quoted, for the machine was busy: {'; '.join(reasons)}."


def look(read: Callable[[], Reading] = read, wait: Callable[[float], None] = time.sleep) -> Load:
    """The state of the machine before anything is measured, after a second of looking."""
    start = read()
    wait(WAIT)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return Load(cpus, average, used_by_others(start, read()))
