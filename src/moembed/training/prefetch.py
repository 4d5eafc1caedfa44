"""Batches of the next steps, made in threads while this one trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def prefetch(make: Callable[[int], T], workers: int, last: int | None = None) -> Iterator[Callable[[int], T]]:
    """``get(step)``, which is ``make(step)``; while the caller is at one step, the next ones are being made.

    Args:
        make: a function of the step alone; with several workers it runs in several threads at once.
        workers: threads, each a step ahead of the one before; 0 makes every step when it is asked for.
        last: the first step that will not be asked for, if known.
    """
    if workers == 0:
        yield make
        return
    pending: dict[int, Future[T]] = {}
    with ThreadPoolExecutor(workers, thread_name_prefix="prefetch") as pool:

        def get(step: int) -> T:
            for coming in range(step, step + workers + 1):
                if coming not in pending and (last is None or coming < last or coming == step):
                    pending[coming] = pool.submit(make, coming)
            return pending.pop(step).result()

        try:
            yield get
        finally:
            for future in pending.values():
                future.cancel()
