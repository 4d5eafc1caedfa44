"""How much is computed at a time, how much may wait, and who is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from moembed.types import UserError

_ON_CPU, _ON_GPU = 4096, 65536  # most tokens of a batch
_WAITING = 1 << 16  # tokens, or 16 batches
_LANES = 4


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Limits of one batcher.

    Attributes:
        batch_tokens: most tokens computed at a time; a longer text is a batch of its own. None: by device.
        queue_tokens: tokens that may wait before further requests are refused. A client of whom nothing waits
            is refused at twice as many. A request that is taken is taken whole. None: by device.
        max_age: seconds after its arrival at which the first part of a request is due, and each further one
            that much later. What is due first goes first, so that nothing is overtaken for ever.
        batch_seconds: about how long a batch should be computed, by the speed that is measured. Shorter
            batches answer sooner, and longer ones compute a little more per second.
        lanes: batches that are computed at a time, on a CPU each with its share of the threads. Small batches
            on threads of their own make more of the cores than all threads on one. None: one for each of
            PyTorch's threads, at most 4, and 1 on a GPU.
        request_tokens: most tokens of one request. None: as many as its client likes.
        max_wait: seconds of work that may wait, by the measured speed, before further requests are refused:
            their clients would have gone before an answer.
    """

    batch_tokens: int | None = None
    queue_tokens: int | None = None
    max_age: float = 0.1
    batch_seconds: float = 0.05
    lanes: int | None = None
    request_tokens: int | None = None
    max_wait: float = 20.0

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "queue_tokens", "lanes", "request_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        if not self.batch_seconds > 0:
            raise UserError(f"batch_seconds must be above 0, not {self.batch_seconds}")
        if not self.max_wait > 0:
            raise UserError(f"max_wait must be above 0, not {self.max_wait}")
        if not 0 <= self.max_age < float("inf"):
            raise UserError(f"max_age must be seconds, 0 or more, not {self.max_age}")

    def on(self, device: str, threads: int) -> BatchLimits:
        """These limits with those of a device, and of so many threads of PyTorch, in place of None."""
        cpu = device == "cpu"
        batch = self.batch_tokens or (_ON_CPU if cpu else _ON_GPU)
        queue = self.queue_tokens or max(_WAITING, 16 * batch)
        lanes = self.lanes or (min(threads, _LANES) if cpu else 1)
        return replace(self, batch_tokens=batch, queue_tokens=queue, lanes=lanes)


class BatchObserver(Protocol):
    """Whoever counts; called from the event loop and from the threads that compute, never for long."""

    def queued(self, tokens: int, rows: int) -> None:
        """So much waits now."""

    def batch(self, tokens: int, rows: int, seconds: float, waited: float) -> None:
        """A batch was computed in ``seconds``; its oldest row had waited ``waited`` seconds before."""

    def truncated(self, texts: int, tokens: int) -> None:
        """So many texts of a request were cut, by so many tokens together."""

    def expert_load(self, counts: Mapping[int, Sequence[int]]) -> None:
        """Of a batch, for every layer with experts: the tokens that each of them was given."""


class Silent:
    """An observer that counts nothing."""

    def queued(self, tokens: int, rows: int) -> None: ...

    def batch(self, tokens: int, rows: int, seconds: float, waited: float) -> None: ...

    def truncated(self, texts: int, tokens: int) -> None: ...

    def expert_load(self, counts: Mapping[int, Sequence[int]]) -> None: ...


SILENT = Silent()
