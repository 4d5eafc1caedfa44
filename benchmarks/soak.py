"""Does a server stay right for long?

`python -m benchmarks.soak --minutes 30`, or `moembed.benchmarks.soak` where the package is installed. Two
workers serve MiniLM with experts to random arrivals: texts of all lengths, alone and several, as floats and
base64. One request in a hundred is malformed, one client in a hundred leaves before its answer, and twice a
worker is killed. Each hundredth vector is compared with ``encode`` in this process. The exit code is 1 where
something was wrong: a vector, a status, a request without an answer, memory that grows.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from moembed.embedder import Embedder
from moembed.machine import best_dtype

from . import models, texts
from .load import PATH, Server, moembed_server, server

ANSWER = 60.0  # seconds; a request that has none by then is unanswered
SAMPLE = 10.0  # seconds between two looks at the memory
AFTER_KILL = 5.0  # seconds in which connections to a killed worker may break
MALFORMED: tuple[bytes, ...] = (
    b"{", b"[]", b"null", b'{"input": 5}', b'{"input": []}', b'{"input": [null]}', b'{"model": "model"}',
    b'{"input": "mole", "dimensions": -1}', b'{"input": "mole", "dimensions": NaN}',
    b'{"input": "\\ud800"}', b'{"input": "mole \xff"}', b'{"input": [[-1]]}', b'{"input": [[1e9]]}',
    b'{"input": "mole", "encoding_format": "pickle"}', b"[" * 10_000,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """``rate`` requests a second for ``seconds``; ``kills`` workers are killed at even distances."""

    seconds: float
    rate: float
    workers: int = 2
    kills: int = 2
    compare_every: int = 100
    odd_share: float = 0.01  # of malformed requests, and of clients that leave


@dataclass(slots=True)
class Found:
    """What the clients met. ``wrong`` are sentences; ``memory`` is (second, bytes) of all processes."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    worst: float = 0.0  # largest difference of a coordinate
    slowest: float = 0.0  # seconds

    def growth(self) -> float | None:
        """The median of the last fifth of the memory over that of the second fifth, less 1."""
        fifth = len(self.memory) // 5
        if not fifth:
            return None
        sizes = [size for _, size in self.memory]
        return median(sizes[-fifth:]) / median(sizes[fifth : 2 * fifth]) - 1


def soak(
    folder: Path, embedder: Embedder, some: Sequence[str], plan: Plan, options: Sequence[str] = ()
) -> Found:
    """Serve a model folder, and use it as the plan says."""
    found = Found()
    command = moembed_server(folder, *options, "--workers", str(plan.workers))
    with server(command) as started:
        asyncio.run(_Clients(started, embedder, some, plan, found).run())
    return found


class _Clients:
    def __init__(
        self, started: Server, embedder: Embedder, some: Sequence[str], plan: Plan, found: Found
    ) -> None:
        self.port, self.server, self.embedder = started.port, started.pid, embedder
        self.some, self.plan, self.found = some, plan, found
        self.random = random.Random(0)
        self.killed = -AFTER_KILL
        self.texts = 0

    async def run(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        begun = due = time.monotonic()
        looks = asyncio.create_task(self._look(begun))
        kills = asyncio.create_task(self._kill())
        while (due := due + self.random.expovariate(self.plan.rate)) < begun + self.plan.seconds:
            await asyncio.sleep(due - time.monotonic())
            task = asyncio.create_task(self._one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        looks.cancel()
        await kills

    async def _one(self) -> None:
        """One client: what it asks for, and whether the answer is the right one."""
        kind = self.random.random()
        begun = time.monotonic()
        if kind < self.plan.odd_share:
            body, check = self.random.choice(MALFORMED), self._check_refused
        else:
            body, check = self._request()
        leaves = kind > 1 - self.plan.odd_share
        try:
            status, answer = await asyncio.wait_for(self._send(body, leaves), ANSWER)
        except asyncio.TimeoutError:
            self.found.counts["unanswered"] += 1
            self.found.wrong.append(f"no answer within {ANSWER:.0f} s")
        except (OSError, asyncio.IncompleteReadError):
            by_kill = time.monotonic() - self.killed < AFTER_KILL or begun < self.killed
            self.found.counts["broken by a kill" if by_kill else "broken"] += 1
            if not by_kill:
                self.found.wrong.append("a connection broke that no killed worker held")
        else:
            if leaves:
                self.found.counts["left"] += 1
                return
            self.found.counts[str(status)] += 1
            self.found.slowest = max(self.found.slowest, time.monotonic() - begun)
            await check(status, answer)

    def _request(self) -> tuple[bytes, Callable[[int, bytes], Any]]:
        some = self.random.choices(self.some, k=self.random.choice((1, 1, 1, 2, 8)))
        form = self.random.choice(("float", "base64"))
        body = json.dumps({"model": "model", "input": some, "encoding_format": form, "truncate": "truncate"})
        first, self.texts = self.texts, self.texts + len(some)
        every = self.plan.compare_every
        places = [i for i in range(len(some)) if (first + i) % every == 0]

        async def check(status: int, answer: bytes) -> None:
            if status != 200:
                self.found.wrong.append(f"status {status} of a request that is well: {answer[:200]!r}")
                return
            vectors = _vectors(answer)
            if len(vectors) != len(some) or not np.isfinite(vectors).all():
                self.found.wrong.append(f"{len(vectors)} vectors of {len(some)} texts, or one not finite")
            elif places:
                expected = await asyncio.to_thread(self._offline, [some[i] for i in places])
                self.found.counts["compared"] += len(places)
                difference = float(np.abs(vectors[places] - expected).max())
                self.found.worst = max(self.found.worst, difference)

        return body.encode(), check

    def _offline(self, some: list[str]) -> np.ndarray:
        return self.embedder.vectors(some).array

    async def _check_refused(self, status: int, answer: bytes) -> None:
        self.found.counts["malformed"] += 1
        if not 400 <= status < 500 or b'"error"' not in answer or b"Traceback" in answer:
            self.found.wrong.append(f"status {status} of a malformed request: {answer[:200]!r}")

    async def _send(self, body: bytes, leaves: bool) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            head = f"POST {PATH} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
            if leaves:
                await asyncio.sleep(self.random.random() * 0.1)
                return 0, b""
            answer = await reader.read()
            if not answer:
                raise ConnectionResetError
            head_of_answer, _, content = answer.partition(b"\r\n\r\n")
            length = int(head_of_answer.lower().partition(b"content-length:")[2].split()[0])
            if len(content) != length:
                raise ConnectionResetError
            return int(answer.split()[1]), content
        finally:
            writer.close()

    async def _look(self, begun: float) -> None:
        while True:
            with suppress(OSError):  # a process that ends while we look
                size = sum(map(proportional_memory, [self.server, *children(self.server)]))
                self.found.memory.append((time.monotonic() - begun, size))
            await asyncio.sleep(min(SAMPLE, self.plan.seconds / 25))

    async def _kill(self) -> None:
        for _ in range(self.plan.kills):
            await asyncio.sleep(self.plan.seconds / (self.plan.kills + 1))
            before = children(self.server)
            pid = self.random.choice(before)
            self.killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            self.found.counts["killed"] += 1
            now = before
            while (pid in now or len(now) < len(before)) and time.monotonic() < self.killed + AFTER_KILL:
                await asyncio.sleep(0.1)
                now = children(self.server)
            if pid in now or len(now) != len(before):
                self.found.wrong.append(f"a killed worker was not replaced: {before} became {now}")


def _vectors(answer: bytes) -> np.ndarray:
    found = [item["embedding"] for item in json.loads(answer)["data"]]
    decoded = [np.frombuffer(base64.b64decode(x), "<f4") if isinstance(x, str) else x for x in found]
    return np.array(decoded, dtype=np.float32)


def children(pid: int) -> list[int]:
    """The processes that this one has started and that have not ended."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def proportional_memory(pid: int) -> int:
    """Bytes of memory, shared pages divided among those that share them (PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=4, help="requests a second")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=2)
    chosen = parser.parse_args()
    plan = Plan(60 * chosen.minutes, chosen.rate, chosen.workers, chosen.kills)
    with TemporaryDirectory() as name:
        folder = models.saved(models.upcycled_minilm(), Path(name) / "experts")
        embedder = Embedder.from_pretrained(folder, dtype=best_dtype(), device="cpu")
        found = soak(folder, embedder, texts.sample(500), plan, ("--dtype", best_dtype()))
    growth = found.growth()
    if growth is not None and growth >= 0.05:
        found.wrong.append(f"memory grew by {growth:.1%}")
    if found.worst > 1e-4:
        found.wrong.append(f"a vector differs by {found.worst:.1e}")
    print(f"{plan.seconds / 60:g} minutes, {plan.rate:g} requests a second, {plan.workers} workers")
    print("requests:", ", ".join(f"{name} {count}" for name, count in sorted(found.counts.items())))
    print(f"slowest answer {found.slowest:.2f} s, largest difference of a coordinate {found.worst:.1e}")
    sizes = [size / 2**20 for _, size in found.memory]
    print(f"memory of all processes (PSS), MiB: {sizes[0]:.0f} at first, {sizes[-1]:.0f} at last", end="")
    print("" if growth is None else f", last fifth over second fifth {growth:+.1%}")
    for sentence in found.wrong:
        print("wrong:", sentence)
    return bool(found.wrong)


if __name__ == "__main__":
    sys.exit(main())
