"""Processes on one socket: all answer, a dead one is replaced, SIGTERM lets them finish, no orphans."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SECONDS = 20

# A worker answers each connection with its number, its process and what was sent; "slow" takes a while.
SERVER = """
import os, signal, socket, sys, threading, time
from moembed.serve.workers import run_workers

def work(number):
    if len(sys.argv) > 1:
        raise RuntimeError("never works")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    listener.settimeout(0.02)
    while not stop.is_set():
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        connection.settimeout(None)
        said = connection.recv(100).decode()
        time.sleep(0.3 if said == "slow" else 0.001)
        connection.sendall(f"{number} {os.getpid()} {said}".encode())
        connection.close()

listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sys.exit(run_workers(2, work, drain_seconds=5, ended=lambda pid: print("ended", pid, flush=True)))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(tmp_path)
    yield process
    process.kill()
    process.communicate()


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    script = folder / "server.py"
    script.write_text(SERVER)
    command = [sys.executable, str(script), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def port_of(server: subprocess.Popen[str]) -> int:
    assert server.stdout is not None
    return int(server.stdout.readline())


def ask(port: int, what: str = "hello") -> tuple[int, int, str]:
    with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
        connection.sendall(what.encode())
        number, pid, said = connection.recv(100).decode().split()
    return int(number), int(pid), said


def until(condition: Callable[[], bool]) -> None:
    last = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_all_answer_and_a_killed_one_is_replaced(server: subprocess.Popen[str]) -> None:
    port = port_of(server)
    known: dict[int, int] = {}

    def both() -> bool:
        number, pid, _ = ask(port)
        known[number] = pid
        return len(known) == 2

    until(both)
    killed = known[0]
    os.kill(killed, signal.SIGKILL)
    assert ask(port) == (1, known[1], "hello") or ask(port)[1] != killed  # the other answers
    until(lambda: both() and known[0] != killed)
    assert alive(known[0])
    assert server.stdout is not None
    assert server.stdout.readline() == f"ended {killed}\n"
    server.terminate()
    assert server.wait(SECONDS) == 0
    assert server.stderr is not None
    assert f"worker 0 (process {killed}) ended by signal 9" in server.stderr.read()


def test_sigterm_lets_them_finish_what_they_are_at(server: subprocess.Popen[str]) -> None:
    port = port_of(server)
    pid = ask(port)[1]
    with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
        connection.sendall(b"slow")
        time.sleep(0.1)  # so that a worker has it
        server.terminate()
        assert connection.recv(100).decode().endswith(" slow")
    assert server.wait(SECONDS) == 0
    assert not alive(pid)


def test_none_outlives_its_parent(server: subprocess.Popen[str]) -> None:
    pid = ask(port_of(server))[1]
    server.kill()
    until(lambda: not alive(pid))


def test_workers_that_never_work_are_given_up(tmp_path: Path) -> None:
    server = start(tmp_path, "broken")
    _, said = server.communicate(timeout=SECONDS)
    assert server.returncode == 1
    assert "RuntimeError: never works" in said
    assert "workers in a row ended at once: the server stops" in said
