"""Servers of other processes, and clients that ask them: at random times, or as fast as they answer.

Clients of an open loop do not wait for each other (Poisson arrivals): a server that falls behind is asked on,
and the time of an answer counts from when it should have been asked.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile

import numpy as np

from moembed.runs.bench import AloneError

PATH = "/v1/embeddings"
NAME = "model"  # what every request asks for; ours refuses others than it serves
NEVER = float("inf")
LIMIT = 10.0  # seconds; what has no answer by then has none
MOEMBED = "import sys; from moembed.cli import main; sys.exit(main(sys.argv[1:]))"


# ---- a server ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    """The port that a program listens on, and the id of its process."""

    port: int
    pid: int


@contextmanager
def server(command: Sequence[str], threads: int | None = None, timeout: float = 120) -> Iterator[Server]:
    """Start a program, ``{port}`` standing for the port it is to listen on; given once it embeds.

    Raises:
        AloneError: it ended, or does not embed within ``timeout`` seconds.
    """
    port = free_port()
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in command], stdout=said, stderr=said, env=environment
        )
        try:
            end = time.monotonic() + timeout
            while not embeds(port):
                if process.poll() is not None or time.monotonic() > end:
                    said.seek(0)
                    last = " ".join(said.read()[-300:].split())
                    raise AloneError(f"the server does not answer: {last}")
                time.sleep(0.2)
            yield Server(port, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def moembed_server(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-c", MOEMBED, "serve", str(folder), "--name", NAME, *options, "--port", "{port}"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def embeds(port: int) -> bool:
    """Whether a server answers a first text."""

    async def ask() -> bool:
        clients = Clients(port, ["ready?"])
        try:
            return await clients.one(0) < NEVER
        finally:
            clients.close()

    try:
        return asyncio.run(ask())
    except OSError:
        return False


# ---- clients -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answers:
    """Seconds until each answer, in the order of asking; ``NEVER`` where there was none, or an error."""

    seconds: np.ndarray
    wall: float

    def percentile(self, share: float) -> float:
        """Seconds within which so many of a hundred were answered."""
        return float(np.percentile(self.seconds, share, method="higher"))


class Clients:
    """Connections to one server that are kept, as many as are needed at a time; a text a request."""

    def __init__(self, port: int, texts: Sequence[str]) -> None:
        self._port = port
        self._bodies = [request(text) for text in texts]
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def one(self, number: int) -> float:
        """Ask for one text; the seconds until the answer."""
        start = time.perf_counter()
        try:
            status = await asyncio.wait_for(self._ask(self._bodies[number % len(self._bodies)]), LIMIT)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
            return NEVER
        return time.perf_counter() - start if status == 200 else NEVER

    async def _ask(self, body: bytes) -> int:
        connection = (
            self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self._port)
        )
        reader, writer = connection
        try:
            writer.write(body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            await reader.readexactly(int(head.partition("content-length:")[2].split()[0]))
        except BaseException:
            writer.close()
            raise
        self._free.append((reader, writer))
        return int(head.split()[1])

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


def request(text: str) -> bytes:
    """The bytes of a request, the same for every server."""
    body = json.dumps({"model": NAME, "input": text, "encoding_format": "float"}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def open_loop(port: int, texts: Sequence[str], rate: float, seconds: float, seed: int = 0) -> Answers:
    """Ask ``rate`` times a second, at random times; it ends when all is answered, or has no answer."""

    async def ask() -> Answers:
        clients, generator = Clients(port, texts), random.Random(seed)
        tasks: list[asyncio.Task[float]] = []
        late: list[float] = []  # of the client itself
        begun = due = time.perf_counter()
        while (due := due + generator.expovariate(rate)) < begun + seconds:
            await asyncio.sleep(due - time.perf_counter())
            late.append(time.perf_counter() - due)
            tasks.append(asyncio.create_task(clients.one(generator.randrange(len(texts)))))
        took = await asyncio.gather(*tasks)
        clients.close()
        return Answers(np.array(took) + np.array(late), time.perf_counter() - begun)

    return asyncio.run(ask())


def closed_loop(port: int, texts: Sequence[str], clients: int) -> Answers:
    """All texts once, each of ``clients`` asking for the next when it has an answer."""

    async def ask() -> Answers:
        connections, numbers = Clients(port, texts), iter(range(len(texts)))
        took = [0.0] * len(texts)

        async def client() -> None:
            for number in numbers:
                took[number] = await connections.one(number)

        begun = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        wall = time.perf_counter() - begun
        connections.close()
        return Answers(np.array(took), wall)

    return asyncio.run(ask())


def idle_query(port: int, text: str, count: int) -> float:
    """The median seconds of one request at a time, with a pause before each."""

    async def ask() -> float:
        clients, took = Clients(port, [text]), []
        for _ in range(count + 2):
            await asyncio.sleep(0.02)
            took.append(await clients.one(0))
        clients.close()
        return median(took[2:])

    return asyncio.run(ask())
