"""The clients of the benchmark, and a short soak of a small model whose workers are killed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moembed.embedder import Embedder
from moembed.runs import bench
from moembed.runs.bench import AloneError

bench.suites()  # puts the folder of the suites on the path
from benchmarks import load, models, serve, soak  # noqa: E402
from benchmarks.serve import DENSE, EXPERTS, Contender, Measured  # noqa: E402

TEXTS = ["a mole", "an owl", "worms", "slow"]


class Echo:
    """A server that counts what it is asked; "slow" is refused."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open = self.most = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"POST /v1/embeddings ")
                body = json.loads(await reader.readexactly(int(head.rsplit(b"length:")[1])))
                self.asked.append(body["input"])
                status = 429 if body["input"] == "slow" else 200
                writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            self.open -= 1
            writer.close()


@pytest.fixture
def echo() -> Iterator[tuple[int, Echo]]:
    loop, made = asyncio.new_event_loop(), Echo()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    started = asyncio.run_coroutine_threadsafe(asyncio.start_server(made.answer, "127.0.0.1", 0), loop)
    server = started.result(10)
    yield server.sockets[0].getsockname()[1], made

    async def end() -> None:
        server.close()
        while made.open:
            await asyncio.sleep(0.01)

    asyncio.run_coroutine_threadsafe(end(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def test_closed_loops_ask_for_every_text_once(echo: tuple[int, Echo]) -> None:
    port, made = echo
    answers = load.closed_loop(port, TEXTS, 2)
    assert sorted(made.asked) == sorted(TEXTS)
    assert made.most <= 2
    assert [seconds < load.NEVER for seconds in answers.seconds] == [True, True, True, False]
    assert answers.percentile(100) == load.NEVER
    assert answers.percentile(50) < 10


def test_open_loops_ask_at_random_times_as_often_as_they_should(echo: tuple[int, Echo]) -> None:
    port, made = echo
    answers = load.open_loop(port, TEXTS[:3], rate=400, seconds=0.5)
    assert len(answers.seconds) == len(made.asked)
    assert 140 < len(made.asked) < 260  # 200 +- four standard deviations, of a fixed seed
    assert answers.percentile(100) < load.NEVER
    assert 0 < load.idle_query(port, "a mole", 3) < 10


def test_the_highest_rate_is_found_by_halving(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def open_loop(port: int, texts: list[str], rate: float, seconds: float, seed: int) -> load.Answers:
        asked.append(rate)
        return load.Answers(np.full(200, 0.1 if rate <= 40 else 0.3), seconds)

    monkeypatch.setattr(serve, "open_loop", open_loop)
    assert serve.highest_rate(1, TEXTS, full=100, window=1, steps=6) == asked[-1] == pytest.approx(39.375)
    assert serve.highest_rate(1, TEXTS, full=1e5, window=1, steps=2) == 0


def test_ratios_and_targets_are_those_of_the_task() -> None:
    ours, slower, faster = (
        Contender(name, model, []) for name, model in (("moembed", EXPERTS), ("one", DENSE), ("other", DENSE))
    )
    measured = {
        ours: Measured(full=90, rate=50, query=0.012),
        slower: Measured(full=20, rate=10, query=0.010),
        faster: Measured(full=30, rate=20, query=0.015),
    }
    rows = list(serve.told(measured, {EXPERTS: (2.0, 0.011), DENSE: (1.0, 0.010)}, count=200))
    rate, full, more = rows[0], rows[3], rows[7]
    assert (rate.ratio, rate.peer, rate.target, rate.met) == (2.5, "other, dense MiniLM", ">= 2", True)
    assert (full.ratio, full.target, full.met) == (0.9, ">= 0.85", True)
    assert (round(more.value or 0, 6), more.target, more.met) == (1.0, "<= 2", True)
    assert len(rows) == 10


def test_a_server_that_does_not_start_says_why() -> None:
    with (
        pytest.raises(AloneError, match="does not answer: no such model"),
        load.server(["python", "-c", "raise SystemExit('no such model')"]),
    ):
        pass


def test_a_soak_with_killed_workers_finds_nothing_wrong(
    served_embedder: Embedder, texts: list[str], tmp_path: Path
) -> None:
    """Of a small model: what is right for seconds here is for half an hour in `benchmarks/soak.py`."""
    served_embedder.save_pretrained(tmp_path / "model")
    plan = soak.Plan(seconds=3, rate=80, kills=1, compare_every=7, odd_share=0.1)
    found = soak.soak(
        tmp_path / "model", served_embedder, [*texts, "the mole digs " * 60], plan, ("--dtype", "float32")
    )
    assert found.wrong == []
    assert found.worst <= 1e-6
    assert found.counts["killed"] == 1
    assert min(found.counts[kind] for kind in ("200", "malformed", "left", "compared")) > 3
    assert found.growth() is not None


@pytest.mark.slow
def test_two_workers_hold_one_models_memory(tmp_path: Path) -> None:
    folder = models.saved(models.upcycled_minilm(), tmp_path / "experts")

    def memory(workers: int) -> int:
        command = load.moembed_server(folder, "--dtype", "float32", "--workers", str(workers))
        with load.server(command) as started:
            load.closed_loop(started.port, TEXTS * 20, 8)
            return sum(map(soak.proportional_memory, [started.pid, *soak.children(started.pid)]))

    assert memory(2) <= 1.3 * memory(1)
