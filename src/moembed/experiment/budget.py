"""When a grid of trainings has to stop: its minutes are over, or somebody asked."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN = 2.0  # seconds between two requests: one that comes while a model is loaded is not heard


class Budget:
    """``over`` once the minutes are spent or the process got SIGTERM."""

    def __init__(self, minutes: float | None) -> None:
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.asked = False

    @property
    def over(self) -> bool:
        return self.asked or (self.end is not None and time.monotonic() >= self.end)

    def ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


@contextmanager
def budget(minutes: float | None) -> Iterator[Budget]:
    """A training in hand is asked to stop when the time is over, as SIGTERM asks it: it finishes its step and
    saves itself. An evaluation in hand is finished. Outside the main thread, where no signal arrives, a
    training is finished too.
    """
    state, closed = Budget(minutes), threading.Event()
    try:
        previous = signal.signal(signal.SIGTERM, state.ask)
    except ValueError:  # not the main thread
        yield state
        return

    def remind() -> None:
        wait = None if state.end is None else max(0.0, state.end - time.monotonic())
        while wait is not None and not closed.wait(wait):
            os.kill(os.getpid(), signal.SIGTERM)
            wait = _AGAIN

    thread = threading.Thread(target=remind, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        closed.set()
        thread.join()
        signal.signal(signal.SIGTERM, previous)
