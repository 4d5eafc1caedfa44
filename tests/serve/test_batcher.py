"""The thread that computes: each request its own rows, who is bad fails alone, nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moembed.serve.batching.batcher import Batcher, NotFiniteError, Request
from moembed.serve.batching.limits import BatchLimits, Silent
from moembed.serve.errors import RequestError
from moembed.types import UserError

BAD, NOT_FINITE, DEADLY = 666, 777, 999
SECONDS = 20
LIMITS = BatchLimits(batch_seconds=1e9, batch_tokens=40, queue_tokens=100, lanes=1)


class Model:
    """Computes ``(sum, length, group)`` of a row; stands still while ``gate`` is closed."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.at_work = threading.Event()

    def __call__(
        self, rows: Sequence[Sequence[int]], prompts: object, tags: object, group: Hashable
    ) -> np.ndarray:
        self.batches.append([list(row) for row in rows])
        self.at_work.set()
        assert self.gate.wait(SECONDS)
        if any(DEADLY in row for row in rows):
            raise SystemExit
        if any(BAD in row for row in rows):
            raise RuntimeError("a bad row")
        vector_NM = np.array([expected(row, group) for row in rows], dtype=np.float32)
        vector_NM[[NOT_FINITE in row for row in rows], 1] = np.nan
        return vector_NM


def expected(row: Sequence[int], group: Hashable = None) -> list[float]:
    return [sum(row), len(row), hash(group) % 97]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def batcher(model: Model) -> Iterator[Batcher]:
    made = Batcher(model, LIMITS)
    made.start()
    yield made
    model.gate.set()
    made.close()
    assert not made.alive


def ask(batcher: Batcher, *rows: list[int], client: str = "") -> Future[np.ndarray]:
    return batcher.submit(Request(client, rows))


def busy(batcher: Batcher, model: Model) -> Future[np.ndarray]:
    """A request that is being computed until the gate is opened."""
    model.gate.clear()
    model.at_work.clear()
    future = ask(batcher, [1])
    assert model.at_work.wait(SECONDS)
    model.batches.clear()
    return future


rows = st.lists(st.lists(st.integers(0, 99), max_size=50), min_size=1, max_size=9)


@given(st.lists(st.tuples(st.sampled_from("abc"), rows, st.integers(0, 2)), max_size=9))
def test_every_request_gets_its_own_rows(requests: list[tuple[str, list[list[int]], int]]) -> None:
    batcher = Batcher(Model(), LIMITS)
    asked = [Request(client, some, group=group) for client, some, group in requests]
    futures = [batcher.submit(request) for request in asked]
    batcher.start()
    for request, future in zip(asked, futures, strict=True):
        assert future.result(SECONDS).tolist() == [expected(row, request.group) for row in request.rows]
    batcher.close()


def test_a_lone_request_waits_for_no_company_and_those_that_wait_share_a_batch(
    batcher: Batcher, model: Model
) -> None:
    first = busy(batcher, model)
    others = [ask(batcher, [number], client=f"{number}") for number in range(5)]
    model.gate.set()
    assert [future.result(SECONDS)[0, 0] for future in (first, *others)] == [1, 0, 1, 2, 3, 4]
    assert model.batches == [[[0], [1], [2], [3], [4]]]


def test_a_bad_request_fails_alone(batcher: Batcher, model: Model) -> None:
    busy(batcher, model)
    good, bad, other = ask(batcher, [1, 2]), ask(batcher, [3], [BAD]), ask(batcher, [4])
    model.gate.set()
    assert good.result(SECONDS).tolist() == [expected([1, 2])]
    assert other.result(SECONDS).tolist() == [expected([4])]
    with pytest.raises(RuntimeError, match="a bad row"):
        bad.result(SECONDS)


def test_the_other_parts_of_a_failed_request_are_not_computed(batcher: Batcher, model: Model) -> None:
    busy(batcher, model)
    bad = ask(batcher, *([[BAD] * 10] + [[number] * 10 for number in range(8)]))
    model.gate.set()
    with pytest.raises(RuntimeError):
        bad.result(SECONDS)
    assert ask(batcher, [5]).result(SECONDS).tolist() == [expected([5])]
    assert sum(map(len, model.batches)) < 9


def test_a_vector_that_is_not_finite_is_never_returned(batcher: Batcher, model: Model) -> None:
    busy(batcher, model)
    good, bad = ask(batcher, [1]), ask(batcher, [2], [NOT_FINITE], [3])
    model.gate.set()
    assert good.result(SECONDS).tolist() == [expected([1])]
    with pytest.raises(NotFiniteError) as caught:
        bad.result(SECONDS)
    assert caught.value.place == 1


def test_a_cancelled_request_is_not_computed(batcher: Batcher, model: Model) -> None:
    busy(batcher, model)
    gone, kept = Request("a", [[7], [8]]), Request("a", [[9]])
    futures = [batcher.submit(request) for request in (gone, kept)]
    assert batcher.cancel(gone) == 2
    model.gate.set()
    assert futures[1].result(SECONDS).tolist() == [expected([9])]
    assert model.batches == [[[9]]]
    with pytest.raises(CancelledError):
        futures[0].result(SECONDS)


def test_cancelling_what_is_being_computed_harms_nobody(batcher: Batcher, model: Model) -> None:
    model.gate.clear()
    running = Request("", [[1]])
    batcher.submit(running)
    assert model.at_work.wait(SECONDS)
    assert batcher.cancel(running) == 0
    model.gate.set()
    assert ask(batcher, [2]).result(SECONDS).tolist() == [expected([2])]


def test_more_than_is_computed_in_max_wait_is_refused(model: Model) -> None:
    batcher = Batcher(model, replace(LIMITS, max_wait=1e-9))
    batcher.start()
    batcher.admit("some")  # nothing waits, and no speed is known
    ask(batcher, [1]).result(SECONDS)
    batcher.admit("some")
    running = busy(batcher, model)
    waiting = ask(batcher, [2])
    with pytest.raises(RequestError) as caught:
        batcher.admit("some")
    assert caught.value.status == 429
    model.gate.set()
    assert running.result(SECONDS).tolist() == [expected([1])]
    assert waiting.result(SECONDS).tolist() == [expected([2])]
    batcher.close()


def test_a_full_queue_refuses_and_says_when_to_come_again(batcher: Batcher, model: Model) -> None:
    busy(batcher, model)
    batcher.admit("bulk")
    ask(batcher, *[[1] * 10] * 10, client="bulk")  # 100 tokens: taken whole
    with pytest.raises(RequestError) as caught:
        batcher.admit("bulk")
    assert caught.value.status == 429
    assert caught.value.retry_after is not None
    assert 1 <= caught.value.retry_after <= 60
    batcher.admit("person")  # of whom nothing waits
    with pytest.raises(RequestError):
        batcher.admit("person", ahead=100)
    model.gate.set()


def test_the_time_to_wait_is_that_of_half_the_queue(batcher: Batcher, model: Model) -> None:
    busy(batcher, model)
    batcher._speed = 10.0
    ask(batcher, *[[1] * 10] * 12)
    with pytest.raises(RequestError) as caught:
        batcher.admit("")
    assert caught.value.retry_after == 6
    model.gate.set()


def test_who_waits_when_the_batcher_is_closed_is_refused(model: Model) -> None:
    batcher = Batcher(model, LIMITS)
    waiting = ask(batcher, [1])  # nobody has started it
    batcher.close()
    for refused in (lambda: waiting.result(SECONDS), lambda: ask(batcher, [2])):
        with pytest.raises(RequestError) as caught:
            refused()
        assert caught.value.status == 503


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whatever_ends_the_thread_leaves_nobody_waiting(batcher: Batcher, model: Model) -> None:
    busy(batcher, model)
    deadly, waiting = ask(batcher, [DEADLY] * 40), ask(batcher, [1] * 40)
    model.gate.set()
    done, not_done = wait([deadly, waiting], SECONDS)
    assert not not_done
    assert all(isinstance(future.exception(), RequestError) for future in done)


def test_an_observer_is_told_of_batches_and_of_what_waits(model: Model) -> None:
    seen: dict[str, list[tuple[float, ...]]] = {"queued": [], "batch": []}

    class Observer(Silent):
        def queued(self, tokens: int, rows: int) -> None:
            seen["queued"].append((tokens, rows))

        def batch(self, tokens: int, rows: int, seconds: float, waited: float) -> None:
            seen["batch"].append((tokens, rows))
            assert seconds >= 0
            assert waited >= 0

    batcher = Batcher(model, LIMITS, Observer())
    futures = [ask(batcher, [1, 2, 3], [4]), ask(batcher, [5])]
    batcher.start()
    wait(futures, SECONDS)
    batcher.close()
    assert seen == {"queued": [(4, 2), (5, 3), (0, 0)], "batch": [(5, 3)]}


class Late(Silent):
    """Hears of what waits; whoever submits is slow to tell it."""

    def __init__(self) -> None:
        self.waiting: tuple[int, int] = (-1, -1)

    def queued(self, tokens: int, rows: int) -> None:
        if threading.current_thread() is threading.main_thread():
            time.sleep(0.2)
        self.waiting = tokens, rows


def test_what_waits_is_told_in_its_order(model: Model) -> None:
    observer = Late()
    batcher = Batcher(model, LIMITS, observer)
    batcher.start()
    ask(batcher, [1, 2]).result(SECONDS)
    assert observer.waiting == (0, 0)
    model.at_work.clear()
    model.gate.clear()
    failed = ask(batcher, *[[BAD] * 40] * 3)
    assert model.at_work.wait(SECONDS)
    assert observer.waiting == (80, 2)
    model.gate.set()
    assert isinstance(failed.exception(SECONDS), RuntimeError)
    assert observer.waiting == (0, 0)  # its other parts wait no more
    batcher.close()


def test_a_batch_is_as_large_as_is_computed_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def compute(rows: Sequence[Sequence[int]], *_: object) -> np.ndarray:
        clock[0] += 0.01 + sum(map(len, rows)) / 10_000  # a batch costs something, and each token
        return np.zeros((len(rows), 1), dtype=np.float32)

    batcher = Batcher(compute, replace(LIMITS, batch_seconds=0.05, batch_tokens=4000))
    assert batcher.batch_tokens == 4000
    batcher.start()
    ask(batcher, [1]).result(SECONDS)
    wait([ask(batcher, [1] * 60, client=f"{number}") for number in range(100)], SECONDS)
    batcher.close()
    assert 340 <= batcher.batch_tokens <= 450  # (0.05 s - 0.01 s) of 10,000 tokens a second


def test_lanes_compute_at_the_same_time_and_share_what_there_is() -> None:
    together = threading.Barrier(2, timeout=SECONDS)
    lanes: set[str] = set()

    def compute(rows: Sequence[Sequence[int]], *_: object) -> np.ndarray:
        together.wait()  # for the other lane
        lanes.add(threading.current_thread().name)
        return np.array([[sum(row)] for row in rows], dtype=np.float32)

    batcher = Batcher(compute, replace(LIMITS, lanes=2))
    batcher.start()
    while batcher._idle < 2:
        time.sleep(0.001)
    future = ask(batcher, *[[number] * 10 for number in range(4)])
    assert future.result(SECONDS)[:, 0].tolist() == [0, 10, 20, 30]
    batcher.close()
    assert len(lanes) == 2


def test_what_a_lane_meets_at_its_start_is_told() -> None:
    def begin() -> None:
        raise MemoryError("too large")

    batcher = Batcher(Model(), LIMITS, begin=begin)
    with pytest.raises(MemoryError, match="too large"):
        batcher.start()
    with pytest.raises(RequestError):
        ask(batcher, [1])


def test_limits_that_are_none_hang_on_the_device() -> None:
    cpu, gpu = BatchLimits().on("cpu", 2), BatchLimits(max_age=1).on("cuda", 2)
    assert cpu.batch_tokens
    assert gpu.batch_tokens
    assert cpu.batch_tokens < gpu.batch_tokens
    assert gpu.max_age == 1
    assert (cpu.lanes, gpu.lanes) == (2, 1)
    assert BatchLimits(lanes=7, batch_tokens=3).on("cpu", 2) == BatchLimits(3, 65536, 0.1, 0.05, 7)
    for wrong in (
        {"batch_tokens": 0}, {"queue_tokens": -1}, {"lanes": 0},
        {"max_age": -0.1}, {"max_age": float("nan")}, {"batch_seconds": 0.0},
    ):  # fmt: skip
        with pytest.raises(UserError, match=next(iter(wrong))):
            BatchLimits(**wrong)  # type: ignore[arg-type]
