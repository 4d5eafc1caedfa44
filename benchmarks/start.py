"""How long does a fresh process take until it answers, and is its first call as fast as later ones?

Every run is a process of its own (``first_use.py``): it imports moembed and PyTorch, loads the folder, and
embeds one short query; another embeds its first 100 texts; another 300 texts, and then the same 300 twice
more. The files lie in the system's cache, as after a restart of a server. MiniLM with every second layer
upcycled to eight experts, and the shape of Nomic Embed v2 with random weights, in the precision that serves
fastest here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from moembed.machine import best_dtype
from moembed.runs.bench import Options, Row, Timing, clock, time_row

from . import models, texts

FIRST, MANY = 100, 300  # texts
TIMEOUT = 300.0  # seconds of one process


@dataclass(frozen=True)
class Run:
    """A process: seconds of its parts by name, of the whole from outside, and its peak memory in bytes."""

    seconds: dict[str, float]
    wall: float
    peak: int


def rows(options: Options) -> Iterator[Row]:
    many = texts.sample(100 if options.quick else MANY)
    with TemporaryDirectory() as name:
        place = Path(name)
        folders = {
            "MiniLM, 8 experts": models.saved(models.upcycled_minilm(), place / "upcycled"),
            "published shape": models.saved(models.published(), place / "published"),
        }
        for title, folder in folders.items():
            yield from to_the_first_query(title, folder, place, options)
        experts = folders["MiniLM, 8 experts"]
        few = {"first": texts.sample(min(FIRST, len(many)))}
        runs = [run(experts, few, place, options) for _ in range(options.repeats)]
        spent = Timing(tuple(one.seconds["load"] + one.seconds["first"] for one in runs))
        question = f"MiniLM, 8 experts: from the files to the first {len(few['first'])} texts"
        yield Row(question, best_dtype(), spent.median, "s", spent.spread)
        for title, folder in {"MiniLM, 8 experts": experts, "MiniLM, dense": models.minilm()}.items():
            yield from first_and_later(title, folder, many, place, options)


def to_the_first_query(title: str, folder: Path, place: Path, options: Options) -> Iterator[Row]:
    runs = [run(folder, {"query": [texts.QUERY]}, place, options) for _ in range(options.repeats)]
    parts = {"import": "importing moembed and PyTorch", "load": "from_pretrained", "query": "the first query"}
    for part, what in parts.items():
        timing = Timing(tuple(one.seconds[part] for one in runs))
        yield Row(f"{title}: {what}", best_dtype(), timing.median, "s", timing.spread)
    whole = Timing(tuple(one.wall for one in runs))
    yield Row(f"{title}: the whole process", best_dtype(), whole.median, "s", whole.spread)
    yield Row(f"{title}: peak memory", best_dtype(), median(one.peak for one in runs) / 2**20, "MiB")


def first_and_later(
    title: str, folder: Path, many: Sequence[str], place: Path, options: Options
) -> Iterator[Row]:
    calls = {"first call": list(many), "later call": list(many), "last call": list(many)}
    runs = [run(folder, calls, place, options) for _ in range(options.repeats)]
    timings = {
        "first call": Timing(tuple(one.seconds["first call"] for one in runs)),
        "later call": Timing(tuple(min(one.seconds[c] for c in ("later call", "last call")) for one in runs)),
    }
    question = f"{title}, {len(many)} texts in a fresh process"
    yield time_row(question, timings, "later call", note="the faster of two")
    yield time_row(question, timings, "first call", "later call", "<= 1.2")


def run(folder: Path, calls: dict[str, list[str]], place: Path, options: Options) -> Run:
    """
    Raises:
        RuntimeError: the process failed.
    """
    file = place / "calls.json"
    file.write_text(json.dumps(list(calls.items())), encoding="utf-8")
    script = str(Path(__file__).with_name("first_use.py"))
    command = [sys.executable, script, str(folder), best_dtype(), str(options.threads), str(file)]
    answers: list[subprocess.CompletedProcess[str]] = []
    wall = clock(
        lambda: answers.append(subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT))
    )
    if answers[0].returncode:
        raise RuntimeError(f"{script} failed: {answers[0].stderr.strip().splitlines()[-1:]}")
    told = json.loads(answers[0].stdout)
    return Run(told["seconds"], wall, told["peak"])
