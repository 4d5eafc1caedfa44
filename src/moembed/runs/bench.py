"""How speed and memory are measured: contenders take turns, and what they did is told in rows.

A suite is a file of the folder ``benchmarks/`` that puts one question; its ``rows(options)`` are the answers.
The machine may be shared, so only ratios are trusted: in every round each contender runs once, one after the
other, and of the ratios of all rounds the median counts. What holds the machine up for a while holds up all
contenders, and a single bad round is outvoted.
"""

from __future__ import annotations

import operator
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from moembed.machine import ROOT, version
from moembed.types import UserError

HEAD = ("question", "contender", "measured", "ratio", "target", "note")
GPU_SUITES = ("gpu",)  # that need one
_COMPARE = {"<=": operator.le, ">=": operator.ge}


# ---- what a suite gets and gives ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Options:
    """``repeats`` rounds, on ``threads`` CPU threads; ``device`` is cpu or cuda; ``quick`` asks for less.

    ``against`` is the folder that holds another version of the package, for suites that compare two.
    """

    repeats: int
    quick: bool
    device: str
    threads: int
    against: Path | None = None

    @classmethod
    def here(cls, repeats: int, quick: bool, threads: int | None, against: Path | None = None) -> Options:
        """On this machine's GPU if it has one, and on as many CPU threads as torch chooses unless told."""
        if threads:  # so that the processes a suite starts have as many
            os.environ["OMP_NUM_THREADS"] = str(threads)
        import torch

        if threads:
            torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(repeats, quick, device, torch.get_num_threads(), against)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one contender.

    ``spread`` is the interquartile range over the median, ``ratio`` the figure over that of ``peer``, and
    ``target`` a bound such as ``<= 1.10`` on the ratio, or on the value where there is no ratio.
    """

    question: str
    contender: str
    value: float | None = None
    unit: str = ""
    spread: float | None = None
    ratio: float | None = None
    peer: str | None = None
    target: str | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        figure = self.value if self.ratio is None else self.ratio
        if self.target is None or figure is None:
            return None
        sign, bound = self.target.split()
        return bool(_COMPARE[sign](figure, float(bound)))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}

    def cells(self) -> list[str]:
        """What a reader sees, in the order of ``HEAD``."""
        spread = "" if self.spread is None else f" ± {self.spread:.0%}"
        verdict = {None: "", True: ", met", False: ", missed"}[self.met]
        return [
            self.question,
            self.contender,
            "" if self.value is None else f"{_figure(self.value)} {self.unit}{spread}",
            "" if self.ratio is None else f"{_figure(self.ratio)} × {self.peer}",
            f"{self.target or ''}{verdict}",
            self.note,
        ]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# ---- time --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one contender, a value per round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def spread(self) -> float | None:
        """Interquartile range over the median; None of a single round."""
        if len(self.seconds) < 2:
            return None
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median


Timings = Mapping[str, Timing]


def clock(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleave(
    contenders: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1
) -> dict[str, Timing]:
    """Time ``repeats`` rounds A B C, A B C, ... after ``warmup`` rounds that do not count."""
    rounds = [
        {name: clock(function) for name, function in contenders.items()} for _ in range(warmup + repeats)
    ][warmup:]
    return {name: Timing(tuple(seconds[name] for seconds in rounds)) for name in contenders}


def ratio(timings: Timings, of: str, to: str) -> float:
    """Seconds of ``of`` over those of ``to``: the median over the rounds, each compared within itself."""
    return median(a / b for a, b in zip(timings[of].seconds, timings[to].seconds, strict=True))


def time_row(
    question: str, timings: Timings, of: str, to: str | None = None, target: str | None = None, note: str = ""
) -> Row:
    """Milliseconds of a contender, and its time over that of ``to``."""
    timing, compared = timings[of], None if to is None else ratio(timings, of, to)
    return Row(question, of, 1e3 * timing.median, "ms", timing.spread, compared, to, target, note)


def speed_row(
    question: str, timings: Timings, of: str, work: float, unit: str,
    to: str | None = None, target: str | None = None, note: str = "",
) -> Row:  # fmt: skip
    """``work`` per second of a contender, and its speed over that of ``to`` on the same work."""
    timing, compared = timings[of], None if to is None else ratio(timings, to, of)
    return Row(question, of, work / timing.median, unit, timing.spread, compared, to, target, note)


# ---- a process of its own ----------------------------------------------------------------------------------


class AloneError(RuntimeError):
    """A process of its own that ended without a result; the message says how."""


@dataclass(frozen=True, slots=True)
class Alone:
    """What a function gave in a process of its own, and the peak of that process's resident memory."""

    result: Any
    peak_bytes: int


def alone(function: Callable[..., Any], *arguments: Any, timeout: float | None = None) -> Alone:
    """Call a function of a module in a fresh process, so that it meets neither caches nor memory of others.

    Raises:
        AloneError: it raised, died or took longer than ``timeout`` seconds.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout):
            raise AloneError(f"no result within {timeout:.0f} s")
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise AloneError(f"the process died, exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, str):
        raise AloneError(answer)
    return Alone(*answer)


def _child(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer: Any = (function(*arguments), resident_memory(peak=True))
    except Exception as error:
        answer = f"{type(error).__name__}: {' '.join(str(error).split())}"
    sender.send(answer)


def resident_memory(peak: bool = False) -> int:
    """Bytes this process has resident now, or has had at most; where the system tells only that, at most."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would also count what the parent held when it started this process
        key = "VmHWM" if peak else "VmRSS"
        line = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return 1024 * int(line.split()[1])
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def forget_peak() -> None:
    """Count the most resident memory from now on, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# ---- suites ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Suite:
    """A file of the folder: the question its docstring opens with, and the function that answers it."""

    name: str
    question: str
    rows: Callable[[Options], Iterator[Row]]


def suites() -> dict[str, str]:
    """The module of every suite by name, of the wheel or, in a checkout, of the folder beside ``src``."""
    package = "moembed.benchmarks" if find_spec("moembed.benchmarks") else "benchmarks"
    if package == "benchmarks" and str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return {name: f"{package}.{name}" for name in import_module(package).SUITES}


def load(name: str) -> Suite:
    """
    Raises:
        UserError: there is no such suite.
    """
    known = suites()
    if name not in known:
        raise UserError(f"there is no suite {name!r} (known: {', '.join(known)})")
    module = import_module(known[name])
    return Suite(name, (module.__doc__ or "").partition("\n")[0], module.rows)


def missing(library: str) -> str | None:
    """How to install a peer that is not there, or None if it is."""
    return None if version(library) else f"{library} is not installed: pip install {library}"
