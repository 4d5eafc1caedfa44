"""Several processes that answer on one listening socket and share the memory of one model.

The parent loads the model and packs its weights, then forks: what nobody writes to is in memory once. It must
not have computed anything itself, for PyTorch's threads do not survive a fork, and a child would wait for
them for ever; ``Embedder.from_pretrained`` and ``ServedModel`` keep to that. The parent replaces a child that
dies, and the children end when the parent does.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from moembed.threads import available_cores
from moembed.types import UserError

_PAUSE = 0.05  # seconds between two looks at the children
_YOUNG = 5.0  # seconds; a child that dies younger has perhaps never worked
_GIVE_UP = 5  # such deaths one after the other
_GRACE = 2.0  # seconds that a child may take longer than it was given

_ENDING = (signal.SIGTERM, signal.SIGINT)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Child:
    number: int
    started: float


def run_workers(
    count: int,
    work: Callable[[int], object],
    *,
    drain_seconds: float = 30.0,
    ended: Callable[[int], object] = lambda pid: None,
) -> int:
    """Run ``work(number)`` in ``count`` forked processes until SIGTERM or SIGINT; the exit code.

    Each has its share of the cores as PyTorch's threads. SIGTERM goes on to all of them, and whoever has not
    ended ``drain_seconds`` later is killed.

    Args:
        work: returns when its process gets SIGTERM and what it was at is done.
        ended: called in the parent with the id of every process that has ended.

    Raises:
        UserError: this system cannot fork.
    """
    if not hasattr(os, "fork"):
        raise UserError("several workers need a system that can fork, such as Linux; leave --workers out")
    supervisor = _Supervisor(work, ended, max(1, available_cores() // count))
    before = {number: signal.signal(number, supervisor.stop) for number in _ENDING}
    gc.collect()
    gc.freeze()  # the collector of a child writes to nothing that the parent made
    try:
        return supervisor.run(count, drain_seconds)
    finally:
        gc.unfreeze()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Supervisor:
    """The parent: starts children, replaces them, and ends them."""

    def __init__(self, work: Callable[[int], object], ended: Callable[[int], object], threads: int) -> None:
        self._work, self._ended, self._threads = work, ended, threads
        self._children: dict[int, _Child] = {}
        self._stopping = False
        self._early = 0  # young deaths in a row
        self._alive_R, self._alive_W = os.pipe()  # nobody writes; it closes with the parent

    def stop(self, *_: object) -> None:
        self._stopping = True

    def run(self, count: int, drain_seconds: float) -> int:
        for number in range(count):
            self._start(number)
        try:
            while not self._stopping:
                for number in self._reaped():
                    if self._early >= _GIVE_UP:
                        _logger.error("%d workers in a row ended at once: the server stops", self._early)
                        return 1
                    time.sleep(min(1.0, _PAUSE * (2**self._early - 1)))
                    self._start(number)
                time.sleep(_PAUSE)
            return 0
        finally:
            self._end_all(drain_seconds)
            os.close(self._alive_R)
            os.close(self._alive_W)

    def _start(self, number: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # a child takes none for its parent
        pid = os.fork()
        if pid == 0:
            self._become_child(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        self._children[pid] = _Child(number, time.monotonic())

    def _become_child(self, number: int) -> None:
        """Never returns: what the parent registered for its own end is not for a child."""
        code = 1
        try:
            for name in _ENDING:
                signal.signal(name, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            os.close(self._alive_W)
            threading.Thread(target=_end_with_parent, args=(self._alive_R,), daemon=True).start()
            if torch := sys.modules.get("torch"):
                torch.set_num_threads(self._threads)
            self._work(number)
            code = 0
        except UserError as error:
            print(error, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _reaped(self) -> list[int]:
        """The numbers of the children that have ended since the last call."""
        numbers = []
        for pid, child in list(self._children.items()):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if not gone:
                continue
            del self._children[pid]
            self._ended(pid)
            numbers.append(child.number)
            age = time.monotonic() - child.started
            self._early = self._early + 1 if age < _YOUNG else 0
            if not self._stopping:
                _logger.error("worker %d (process %d) ended %s", child.number, pid, _how(status))
        return numbers

    def _end_all(self, drain_seconds: float) -> None:
        self._stopping = True
        for name, seconds in ((signal.SIGTERM, drain_seconds + _GRACE), (signal.SIGKILL, _GRACE)):
            for pid in self._children:
                with suppress(ProcessLookupError):
                    os.kill(pid, name)
            last = time.monotonic() + seconds
            while self._children and time.monotonic() < last:
                self._reaped()
                time.sleep(_PAUSE)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"with code {code}" if code >= 0 else f"by signal {-code}"


def _end_with_parent(alive: int) -> None:
    """Wait until the parent is gone, however it ended, and then do as if it had sent SIGTERM."""
    os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGTERM)
