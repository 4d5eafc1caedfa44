"""What is left of the speed when another process keeps a core busy?

MiniLM, dense and with every second layer upcycled to eight experts, embeds mixed texts: alone on the machine,
and beside one process that does nothing but count. Each model is served by a process of its own with as many
threads as always; the two take turns, and the counting process runs through all turns of its rounds. What the
counting process takes is one core of ours, so what is left is to be at least the share of the other cores.
Threads wait as those of `moembed embed` do (`moembed.threads`), unless you have set how they wait.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from moembed.machine import best_dtype, machine
from moembed.runs.bench import AloneError, Options, Row, Timing, speed_row, time_row
from moembed.threads import SPIN

from . import models, texts
from .runtimes import Files, Running, turns

TARGETS = {"alone": "<= 1.2", "beside a busy process": "<= 1.6"}
DENSE, EXPERTS = "dense", "8 experts"
# ends with the process that started it, however that ends
_BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): sum(range(1_000_000))"


def rows(options: Options) -> Iterator[Row]:
    some, form = texts.sample(100 if options.quick else 600), best_dtype()
    cores = machine()["cores"]
    with TemporaryDirectory() as name, ExitStack() as stack:
        folders = {
            DENSE: models.minilm(),
            EXPERTS: models.saved(models.upcycled_minilm(), Path(name) / "upcycled"),
        }
        running: dict[str, Running] = {}
        stack.enter_context(waiting_as_commands_do())
        for title, folder in folders.items():
            try:
                running[title] = Running("moembed", Files(folder, Path(name)), form, some, options.threads)
            except AloneError as error:
                yield Row("encode on shared cores", title, note=str(error))
                return
            stack.callback(running[title].close)
        timings = {"alone": turns(running, "encode", options.repeats, warmup=1)}
        with busy_process():
            timings["beside a busy process"] = turns(running, "encode", options.repeats)
    yield from told(f"MiniLM, {form}, {len(some)} texts", len(some), timings, cores)


@contextmanager
def waiting_as_commands_do() -> Iterator[None]:
    """Processes that are started here read how their threads wait."""
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = SPIN
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


def told(what: str, count: int, timings: dict[str, dict[str, Timing]], cores: int) -> Iterator[Row]:
    for where, some_timings in timings.items():
        question = f"{what}, {where}"
        yield speed_row(question, some_timings, DENSE, count, "docs/s")
        yield speed_row(question, some_timings, EXPERTS, count, "docs/s")
        yield time_row(f"{question}, experts over dense", some_timings, EXPERTS, DENSE, TARGETS[where])
    for title in (DENSE, EXPERTS):
        alone, beside = (some_timings[title].median for some_timings in timings.values())
        share, least = 100 * alone / beside, 100 * (cores - 1) / cores
        question = "speed that is left beside a busy process"
        note = f"{cores - 1} of {cores} cores are {least:.0f} %"
        yield Row(question, title, share, "%", target=f">= {least:.0f}" if cores > 1 else None, note=note)


@contextmanager
def busy_process() -> Iterator[None]:
    """One core's worth of work, by a process that never waits."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY, str(os.getpid())])
    try:
        yield
    finally:
        process.kill()
        process.wait()
