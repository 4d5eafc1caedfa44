"""How much is computed at a time, how much may wait, and who is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from moembed.types import UserError

PARTS = 4  # parts of a request that fit into one batch
_ON_CPU, _ON_GPU = 1024, 65536  # tokens of a batch: some tens of milliseconds
_WAITING = 64  # batches


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Limits of one batcher.

    Attributes:
        batch_tokens: most tokens computed at a time; a longer text is a batch of its own. Larger batches
            compute a little more per second, and whoever arrives meanwhile waits longer. None: by device.
        queue_tokens: tokens that may wait before further requests are refused. A client of whom nothing waits
            is refused at twice as many. A request that is taken is taken whole. None: 64 batches.
        max_age: seconds after its arrival at which the first part of a request is due, and each further one
            that much later. What is due first goes first, so that nothing is overtaken for ever.
    """

    batch_tokens: int | None = None
    queue_tokens: int | None = None
    max_age: float = 0.1

    def __post_init__(self) -> None:
        for name, value in (("batch_tokens", self.batch_tokens), ("queue_tokens", self.queue_tokens)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        if not 0 <= self.max_age < float("inf"):
            raise UserError(f"max_age must be seconds, 0 or more, not {self.max_age}")

    def on(self, device: str) -> BatchLimits:
        """These limits with the sizes of a device in place of None."""
        batch = self.batch_tokens or (_ON_CPU if device == "cpu" else _ON_GPU)
        return BatchLimits(batch, self.queue_tokens or _WAITING * batch, self.max_age)

    @property
    def part_tokens(self) -> int:
        """Most tokens of one request that go into a batch without a break; needs ``batch_tokens``."""
        assert self.batch_tokens is not None
        return max(1, self.batch_tokens // PARTS)


class BatchObserver(Protocol):
    """Whoever counts; called from the event loop and from the thread that computes, never for long."""

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
