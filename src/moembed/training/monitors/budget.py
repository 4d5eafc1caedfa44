"""A budget of time: when it is spent, how several share it, and how much of a task fits into it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.sample import choose
from moembed.types import UserError

HARD = 10  # best documents of BM25 that each query of a task keeps when the task is cut
_FIRST_BATCH = 8  # texts
_PART_ROWS = 16384  # documents ranked between two looks at the clock


class Overrun(Exception):  # noqa: N818 - nothing went wrong
    """The time is up."""


class Deadline:
    """``check()`` raises Overrun once ``seconds`` have passed."""

    def __init__(self, seconds: float) -> None:
        self.started = time.monotonic()
        self.seconds = seconds

    @property
    def passed(self) -> float:
        return time.monotonic() - self.started

    def check(self, _: object = None) -> None:
        if self.passed > self.seconds:
            raise Overrun

    def parts(self, document_NM: np.ndarray) -> Iterator[np.ndarray]:
        """The documents, a part at a time, as long as there is time."""
        for start in range(0, len(document_NM), _PART_ROWS):
            self.check()
            yield document_NM[start : start + _PART_ROWS]


def fair_shares(needs: Sequence[float], total: float) -> list[float]:
    """Split ``total`` evenly, but give nobody more than it needs: the rest goes to those that need more."""
    shares = [0.0] * len(needs)
    for left, i in zip(range(len(needs), 0, -1), np.argsort(needs), strict=True):
        shares[i] = min(needs[i], total / left)
        total -= shares[i]
    return shares


def texts_per_second(encode: Callable[[list[str]], object], texts: Sequence[str], seconds: float) -> float:
    """How fast ``encode`` is, measured in about ``seconds`` at most.

    Batches double until the time is spent or they hold all texts; the last one counts, those before it warm
    up.
    """
    deadline, size = Deadline(seconds), _FIRST_BATCH
    while True:
        started = deadline.passed
        encode(list(texts[:size]))
        took = deadline.passed - started
        if size >= len(texts) or deadline.passed + 2 * took > seconds:
            return min(size, len(texts)) / max(took, 1e-9)
        size *= 2


def fit(task: RetrievalTask, texts: int, queries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of at most ``queries`` queries and of documents, about ``texts`` in all, as `sample` chooses them.

    Raises:
        UserError: not even one query with its documents fits, or bm25s is not installed.
    """
    queries = min(queries, len(task.queries))
    if queries + len(task.documents) <= texts:
        return choose(task, queries, hard=0, seed=seed, documents=len(task.documents))
    answers = (task.qrels.grade > 0).sum() / len(task.queries)
    queries = min(queries, max(int(texts / (1 + HARD + answers)), texts - len(task.documents)))
    if queries < 1:
        raise UserError(
            f"there is time for {texts} texts of {task.name}, too few for one query and its documents: "
            "raise evaluate.budget_seconds"
        )
    return choose(task, queries, HARD, seed, documents=texts - queries)
