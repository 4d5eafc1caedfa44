"""Threads that compute what waits, batch after batch, and hand every request its own rows."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from moembed.serve.batching.limits import SILENT, BatchLimits, BatchObserver
from moembed.serve.batching.queue import FairQueue, Part, cut
from moembed.serve.errors import RequestError

Rows = Sequence[Sequence[int]]
Compute = Callable[[Rows, Sequence[int | None], Sequence[int | None], Hashable], np.ndarray]

_PARTS = 4  # parts of a request that fill a batch
_MEMORY = 0.2  # weight of the newest batch in the measured speed
_QUANTUM = 128  # tokens
_LEAST = 128  # tokens of a full batch; of smaller ones, most of the time is calls
_LONGEST_RETRY = 60.0  # seconds


class NotFiniteError(Exception):
    """The vector of row ``place`` of a request holds a value that is no number."""

    def __init__(self, place: int) -> None:
        super().__init__(f"the vector of row {place} is not finite")
        self.place = place


@dataclass(eq=False, slots=True)
class Request:
    """Token rows of one client.

    Attributes:
        prompt_tokens: of all rows, as `Embedder.embed` takes it.
        tags: the number of each row's tag; None of all requests of a model whose routers look at none.
        group: requests of different groups cannot share a batch, for instance those of other depths.
        on_batch: told of every batch with rows of it, before its vectors are handed out: when it started and
            ended, by the monotonic clock, and its tokens and rows.
    """

    client: str
    rows: Rows
    prompt_tokens: int | None = None
    tags: Sequence[int] | None = None
    group: Hashable = None
    on_batch: Callable[[float, float, int, int], None] | None = None
    arrived: float = 0.0  # by the monotonic clock
    left: int = 0  # rows without a vector
    array_NM: np.ndarray | None = None
    done: Future[np.ndarray] = field(default_factory=Future)

    def tag_of(self, place: int) -> int | None:
        return None if self.tags is None else self.tags[place]


class Batcher:
    """Computes rows of many requests together; the vectors are those that each would get alone.

    Args:
        compute: token rows of one group, and the prompt tokens and tag of each, to vectors ``(N, M)``. Called
            by as many threads as there are lanes, always the same: PyTorch's threads belong to whoever asks
            first.
        limits: with all sizes, see `BatchLimits.on`.
        begin: called once by each of these threads before it computes.
    """

    def __init__(
        self,
        compute: Compute,
        limits: BatchLimits,
        observer: BatchObserver = SILENT,
        begin: Callable[[], object] = lambda: None,
    ) -> None:
        assert limits.batch_tokens is not None
        assert limits.queue_tokens is not None
        assert limits.lanes is not None
        self._compute, self._begin, self._observer = compute, begin, observer
        self._limits, self._most_tokens = limits, limits.batch_tokens
        self._queue_tokens, self._lanes = limits.queue_tokens, limits.lanes
        self._queue = FairQueue(min(_QUANTUM, limits.batch_tokens))
        self._changed = threading.Condition()
        self._closed = False
        self._idle = 0  # lanes that wait
        self._speed = 0.0  # tokens per second of one lane, in full batches
        self._begun: list[Future[object]] = [Future() for _ in range(limits.lanes)]
        self._threads = [
            threading.Thread(target=self._work, args=(begun,), name=f"batcher-{number}", daemon=True)
            for number, begun in enumerate(self._begun)
        ]

    # ---- from any thread ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads, and wait until ``begin`` has been called by all; what it raises is raised."""
        for thread in self._threads:
            thread.start()
        for begun in self._begun:
            begun.result()

    @property
    def alive(self) -> bool:
        """Whether what is queued is computed."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def batch_tokens(self) -> int:
        """The tokens of a full batch now: as many as the measured speed computes in ``batch_seconds``."""
        if not self._speed:
            return self._most_tokens
        return min(self._most_tokens, max(_LEAST, int(self._speed * self._limits.batch_seconds)))

    def admit(self, client: str, ahead: int = 0) -> None:
        """Refuse a request of ``client`` while too much waits; ``ahead`` tokens are still on their way here.

        Raises:
            RequestError: 429, with the seconds after which the queue should be half empty.
        """
        with self._changed:
            waiting = self._queue.tokens + ahead
            most = self._queue_tokens * (1 if self._queue.tokens_of(client) else 2)
            speed = self._speed * self._lanes
        if waiting >= most or (speed and waiting > speed * self._limits.max_wait):
            seconds = waiting / 2 / speed if speed else 1.0
            raise RequestError(
                429,
                f"too much is waiting: {waiting} tokens; send the request again later",
                code="rate_limit_exceeded",
                retry_after=float(min(_LONGEST_RETRY, max(1, math.ceil(seconds)))),
            )

    def submit(self, request: Request) -> Future[np.ndarray]:
        """Queue a request; its future gives the vectors ``(N, M)`` in the order of its rows.

        Raises:
            RequestError: 503, the batcher is closed.
        """
        request.left = len(request.rows)
        lengths = [len(row) for row in request.rows]
        request.arrived = time.monotonic()
        tokens, age = max(1, self.batch_tokens // _PARTS), self._limits.max_age
        parts = cut(request, lengths, tokens, age, request.arrived, request.group)
        with self._changed:
            if self._closed:
                raise shutting_down()
            self._queue.put(request.client, parts)
            self._tell_queued()
            self._changed.notify(len(parts))
        return request.done

    def cancel(self, request: Request) -> int:
        """Nobody waits for this request any more: its rows that have not begun are left out; how many."""
        with self._changed:
            rows = self._queue.remove(request.client, request)
            self._tell_queued()
        request.done.cancel()
        return rows

    def close(self, timeout: float = 10.0) -> None:
        """End the threads after the batches they are at; whatever still waits is refused with 503."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout)
        self._refuse_all()

    # ---- in the threads that compute ---------------------------------------------------------------------

    def _work(self, begun: Future[object]) -> None:
        parts: list[Part] = []
        try:
            try:
                begun.set_result(self._begin())
            except Exception as error:
                begun.set_exception(error)
                return
            while parts := self._next():
                self._run(parts)
        finally:  # whatever ended it, nobody may wait for ever
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            self._refuse_all(parts)

    def _next(self) -> list[Part]:
        """The parts of the next batch; none, once the batcher is closed.

        An idle lane does not wait for company: a lone request is computed at once. What does not fill a batch
        for every idle lane is shared among them.
        """
        with self._changed:
            self._idle += 1
            while not self._queue and not self._closed:
                self._changed.wait()
            share = -(-self._queue.tokens // self._idle)
            self._idle -= 1
            if self._closed:
                return []
            full = self.batch_tokens
            parts = self._queue.take(min(full, max(share, full // _PARTS)))
            self._tell_queued()
        return parts

    def _run(self, parts: list[Part]) -> None:
        start = time.monotonic()
        failed = self._attempt(parts)
        if failed is not None:  # whoever is to blame fails alone
            by_request: dict[Request, list[Part]] = {}
            for part in parts:
                by_request.setdefault(part.request, []).append(part)
            for request, own in by_request.items():
                error = failed if len(by_request) == 1 else self._attempt(own)
                if error is not None:
                    self._fail(request, error)
        seconds, tokens = time.monotonic() - start, sum(part.tokens for part in parts)
        if failed is None:
            self._learn(tokens / max(seconds, 1e-6), full=2 * tokens >= self.batch_tokens)
        waited = start - min(part.request.arrived for part in parts)
        self._observer.batch(tokens, sum(len(part.places) for part in parts), seconds, waited)

    def _learn(self, speed: float, full: bool) -> None:
        """A small batch is slow for its tokens, so it says no more than that the speed is at least this."""
        if speed > self._speed:
            self._speed = speed
        elif full:
            self._speed = (1 - _MEMORY) * self._speed + _MEMORY * speed

    def _attempt(self, parts: list[Part]) -> Exception | None:
        """Compute parts together and hand out their vectors; or what went wrong, and nothing handed out."""
        rows = [part.request.rows[place] for part in parts for place in part.places]
        prompts = [part.request.prompt_tokens for part in parts for _ in part.places]
        tags = [part.request.tag_of(place) for part in parts for place in part.places]
        began = time.monotonic()
        try:
            vector_NM = self._compute(rows, prompts, tags, parts[0].group)
        except Exception as error:
            return error
        told = {part.request: part.request.on_batch for part in parts if part.request.on_batch}
        for tell in told.values():
            tell(began, time.monotonic(), sum(map(len, rows)), len(rows))
        start = 0
        for part in parts:
            end = start + len(part.places)
            self._hand_out(part, vector_NM[start:end])
            start = end
        return None

    def _hand_out(self, part: Part, vector_NM: np.ndarray) -> None:
        request: Request = part.request
        if request.done.done():
            return
        finite_N = np.isfinite(vector_NM).all(axis=1)
        if not finite_N.all():
            place = part.places[int(np.argmin(finite_N))]
            self._fail(request, NotFiniteError(place))
            return
        with self._changed:
            if request.array_NM is None:
                request.array_NM = np.empty((len(request.rows), vector_NM.shape[1]), dtype=np.float32)
        request.array_NM[part.places] = vector_NM
        with self._changed:  # other lanes count too
            request.left -= len(part.places)
            left = request.left
        if not left:
            with suppress(InvalidStateError):  # cancelled at this moment
                request.done.set_result(request.array_NM)

    def _fail(self, request: Request, error: Exception) -> None:
        with self._changed:
            self._queue.remove(request.client, request)
            self._tell_queued()
        with suppress(InvalidStateError):
            request.done.set_exception(error)

    def _refuse_all(self, begun: Sequence[Part] = ()) -> None:
        """Of requests that are answered already, nothing happens."""
        with self._changed:
            parts = [*begun, *self._queue.clear()]
            if parts:
                self._tell_queued()
        for request in {part.request for part in parts}:
            with suppress(InvalidStateError):
                request.done.set_exception(shutting_down())

    def _tell_queued(self) -> None:
        """With ``_changed`` held: told later, an older count could be the last that is heard."""
        self._observer.queued(self._queue.tokens, self._queue.rows)


def shutting_down() -> RequestError:
    """The answer to whoever comes too late."""
    return RequestError(503, "the server is shutting down", code="shutting_down", retry_after=1.0)
