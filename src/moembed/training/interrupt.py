"""Ctrl-C and SIGTERM as a request, not an end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupt:
    asked = False

    def __init__(self, patient: bool) -> None:
        self.patient = patient

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT and not self.patient:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def interruptible(patient: bool = False) -> Iterator[Interrupt]:
    """The first Ctrl-C (or SIGTERM) lets the step in hand finish and the run be saved; a second Ctrl-C stops.

    Args:
        patient: a second one does not stop either: ``torchrun`` passes on what its processes got already.
    """
    interrupt = Interrupt(patient)
    try:
        previous: dict[int, Any] = {
            number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
        }
    except ValueError:  # only the main thread may set handlers
        previous = {}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
