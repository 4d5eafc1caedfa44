"""How many requests a second does a server answer within 200 ms, and what does HTTP cost, beside others?

One text a request, queries and documents in equal numbers, texts that every server reads whole. Arrivals are
random (Poisson) and do not wait for answers. A rate counts if 99 of 100 answers come within 200 ms of when
they should have been asked for; the highest such rate is found by halving. llama.cpp and infinity cannot hold
MiniLM with experts: they serve dense MiniLM, which is less work, in 16 bits as all do. infinity wants other
versions of libraries than ours: give the path of its program in MOEMBED_INFINITY.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from moembed.folder.read import read_folder
from moembed.machine import best_dtype
from moembed.runs.bench import AloneError, Options, Row, missing

from . import models, texts
from .load import closed_loop, idle_query, moembed_server, open_loop, server
from .peers import whole
from .runtimes import Files, Running

WITHIN = 0.2  # seconds
CLIENTS = 16  # that ask all the time, for the speed under full load
QUERIES = 30  # single ones, on an idle server
DENSE, EXPERTS = "dense MiniLM", "MiniLM with 8 experts"
OURS = "moembed"


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """A server of a model, and the command that starts it, the port being its last word."""

    name: str
    model: str
    command: list[str]


@dataclass(frozen=True, slots=True)
class Measured:
    """``full``: texts a second under full load; ``rate``: requests a second in time; ``query``: seconds."""

    full: float
    rate: float
    query: float


def rows(options: Options) -> Iterator[Row]:
    tokenizer = read_folder(models.minilm()).tokenizer
    some = whole(mix(40 if options.quick else 240), tokenizer)
    with TemporaryDirectory() as name:
        place = Path(name)
        folders = {DENSE: models.minilm(), EXPERTS: models.saved(models.upcycled_minilm(), place / "experts")}
        measured: dict[Contender, Measured] = {}
        offline: dict[str, tuple[float, float]] = {}
        for title, folder in folders.items():
            offline[title] = without_http(folder, place, some, options)
        for contender, note in contenders(folders, place, options):
            try:
                if note:
                    raise AloneError(note)
                with server(contender.command, options.threads) as started:
                    measured[contender] = measure(started.port, some, options)
            except AloneError as error:
                yield Row("requests a second", f"{contender.name}, {contender.model}", note=str(error))
    yield from told(measured, offline, len(some))


def mix(count: int) -> list[str]:
    """Queries and documents in equal numbers, in random order."""
    queries, documents = texts.queries_and_documents()
    generator = random.Random(0)
    some = [*generator.sample(queries, count // 2), *generator.sample(documents, count // 2)]
    generator.shuffle(some)
    return some


def without_http(folder: Path, place: Path, some: list[str], options: Options) -> tuple[float, float]:
    """Seconds of all texts, and of one query, by ``encode`` in a process that does nothing else."""
    running = Running(OURS, Files(folder, place), best_dtype(), some, options.threads)
    try:
        running.seconds("encode")
        encode = median(running.seconds("encode") for _ in range(options.repeats))
        return encode, median(running.seconds("query") for _ in range(QUERIES))
    finally:
        running.close()


def contenders(folders: dict[str, Path], place: Path, options: Options) -> Iterator[tuple[Contender, str]]:
    """Each with what keeps it from being measured, or nothing."""
    form, python = best_dtype(), sys.executable
    plain = str(Path(__file__).with_name("plain_server.py"))
    for title, folder in folders.items():
        yield Contender(OURS, title, moembed_server(folder, "--dtype", form)), ""
        handler = Contender(
            "sentence-transformers and FastAPI", title, [python, plain, str(folder), form, "{port}"]
        )
        yield handler, missing("sentence-transformers") or ""
    dense = folders[DENSE]
    yield from llamacpp(dense, place, options)
    infinity = os.environ.get("MOEMBED_INFINITY", "")
    command = [infinity, "v2", "--model-id", str(dense), "--device", "cpu", "--engine", "torch"]
    command += ["--dtype", form, "--no-bettertransformer", "--url-prefix", "/v1", "--port", "{port}"]
    yield Contender("infinity", DENSE, command), "" if infinity else "MOEMBED_INFINITY is not set"


def llamacpp(dense: Path, place: Path, options: Options) -> Iterator[tuple[Contender, str]]:
    command = [sys.executable, "-m", "llama_cpp.server", "--embedding", "true", "--n_ctx", "512"]
    command += ["--n_threads", str(options.threads), "--n_threads_batch", str(options.threads)]
    note = missing("llama-cpp-python") or ""
    if not note and not find_spec("starlette_context"):
        note = "its server is not installed: pip install 'llama-cpp-python[server]'"
    file = Path()
    if not note:
        try:
            file = Files(dense, place).of("llama.cpp", "bf16")
        except AloneError as error:
            note = str(error)
    yield Contender("llama.cpp", DENSE, [*command, "--model", str(file), "--port", "{port}"]), note


def measure(port: int, some: list[str], options: Options) -> Measured:
    window, steps = (1.5, 2) if options.quick else (7.0, 5)
    closed_loop(port, some[:CLIENTS], CLIENTS)  # the first ones are slower everywhere
    query = idle_query(port, texts.QUERY, QUERIES)
    answers = closed_loop(port, some, CLIENTS)
    if not answers.percentile(100) < float("inf"):
        raise AloneError("it left requests without an answer")
    full = len(some) / answers.wall
    return Measured(full, highest_rate(port, some, full, window, steps), query)


def highest_rate(port: int, some: list[str], full: float, window: float, steps: int) -> float:
    """The highest rate at which 99 of 100 answers come in time, of those between nothing and full speed.

    0 where a twentieth of full speed is too much.
    """
    low, high = 0.0, 1.2 * full
    rate = 0.6 * full
    for step in range(steps):
        answers = open_loop(port, some, rate, window, seed=step)
        if answers.percentile(99) <= WITHIN:
            low = rate
        else:
            high = rate
        rate = (low + high) / 2
    return low


def told(
    measured: dict[Contender, Measured], offline: dict[str, tuple[float, float]], count: int
) -> Iterator[Row]:
    peers = {contender: found for contender, found in measured.items() if contender.name != OURS}
    for contender, found in measured.items():
        name, ours = f"{contender.name}, {contender.model}", contender.name == OURS
        best = max(peers, key=lambda peer: peers[peer].rate, default=None) if ours else None
        ratio = found.rate / peers[best].rate if best and peers[best].rate else None
        yield Row(
            f"requests a second with 99 of 100 within {1e3 * WITHIN:.0f} ms", name, found.rate, "requests/s",
            ratio=ratio, peer=best and f"{best.name}, {best.model}", target=">= 2" if ratio else None,
        )  # fmt: skip
    for contender, found in measured.items():
        name, ours = f"{contender.name}, {contender.model}", contender.name == OURS
        alone = count / offline[contender.model][0]
        yield Row(
            f"{CLIENTS} clients that ask all the time", name, found.full, "texts/s",
            ratio=found.full / alone if ours else None, peer="encode of the same texts" if ours else None,
            target=">= 0.85" if ours else None,
        )  # fmt: skip
    for contender, found in measured.items():
        name, ours = f"{contender.name}, {contender.model}", contender.name == OURS
        yield Row("one query, nobody else asks", name, 1e3 * found.query, "ms")
        if ours:
            more = 1e3 * (found.query - offline[contender.model][1])
            yield Row("the same, above encode without HTTP", name, more, "ms", target="<= 2")
