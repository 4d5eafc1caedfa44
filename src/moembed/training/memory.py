"""Memory that the C library would keep, returned to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from itertools import count

EVERY = 16  # chunks: what is returned has to be asked for again, which costs time
_chunks = count(1)


def trim_heap(device: str) -> None:
    """After every sixteenth chunk on the CPU: return freed blocks to the system.

    glibc keeps them, and often cannot use them again for aligned ones of the same size, as torch asks for:
    the process would grow with every chunk. Nothing to do on other devices and with other C libraries.
    """
    if device == "cpu" and next(_chunks) % EVERY == 0:
        trim_heap_now()


def trim_heap_now() -> None:
    if trim := _malloc_trim():
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
