"""Retrieval scores of a model in training: on a schedule, within a budget of time, by all processes together.

What is looked at is chosen once, before the first step, and stays the same for the whole run: the speed of
embedding is measured, and a task that would take longer than its share of the budget is cut down
(`moembed.evaluation.sample`). Should an evaluation take longer than its budget all the same, every process
abandons it and training goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np
import torch

from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask, load_task, without_own
from moembed.evaluation.metrics import evaluate_ranking, parse_metric
from moembed.evaluation.sample import subset
from moembed.evaluation.tagged import tagged
from moembed.machine import choose_precision
from moembed.search.exact import search_parts
from moembed.training.monitors.budget import Deadline, Overrun, fair_shares, fit, texts_per_second
from moembed.training.parallel import World
from moembed.training.settings import EvaluateConfig, LoopConfig
from moembed.training.task import Look, Moment, Monitor
from moembed.types import UserError

PLANNED = 0.5  # share of the budget for embedding, as planned; the rest is for ranking and for slower moments
PROBED = 0.1  # share of the budget spent on measuring the speed, once
FEW = 30  # queries of a task that was cut: whoever reads its score is warned
TOP_K = 100  # results of a ranking where the metric has no cut-off

T = TypeVar("T")


def load_tasks(config: EvaluateConfig | None) -> list[RetrievalTask]:
    """The task folders that ``config`` names.

    Raises:
        UserError: a folder is missing or broken, or two tasks have the same name.
    """
    tasks = [load_task(path) for path in config.tasks] if config else []
    names = [task.name for task in tasks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"evaluate.tasks: two folders are called {min(twice)}; give them different names")
    return tasks


class RetrievalMonitor(Monitor):
    """The tasks of a run, when they are looked at, and the best mean score so far.

    Every method is for all processes together, and gives every process the same.

    Args:
        batch_tokens: most tokens embedded at a time; None: as many as suit the device.
    """

    name = "evaluation"

    def __init__(
        self, options: EvaluateConfig, config: LoopConfig, tasks: Sequence[RetrievalTask], model: Embedder,
        world: World, batch_tokens: int | None = None,
    ) -> None:  # fmt: skip
        self.options, self.seed = options, config.seed
        self.full = self.tasks = list(tasks)
        self.model, self.world = model, world
        self.precision = choose_precision(config.precision, model.device)
        self.batch_tokens = batch_tokens
        self.best, self.looked = -math.inf, 0.0
        self.rows: list[tuple[np.ndarray, np.ndarray]] = []  # of queries and documents, by task
        self.digests: list[str] = []

    # ---- what is looked at ---------------------------------------------------------------------------

    def begin(self, step: int) -> Look:
        """Choose what is looked at, unless a checkpoint said so."""
        if not self.rows:
            self.plan()
        return Look(sentences=[self.describe()])

    def plan(self) -> None:
        """Choose the queries and documents of the run, so that embedding them fits the budget.

        Every task gets the same time; what a smaller one leaves goes to the larger ones.

        Raises:
            UserError: not even one query with its documents fits.
        """
        speeds = [self._speed(task) for task in self.full]
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        if self.world.first:
            most, full = self.options.queries, self.full
            sizes = [min(most, len(task.queries)) + len(task.documents) for task in full]
            needs = [size / speed for size, speed in zip(sizes, speeds, strict=True)]
            shares = fair_shares(needs, PLANNED * self.options.budget_seconds)
            texts = [round(share * speed) for share, speed in zip(shares, speeds, strict=True)]
            rows = [fit(task, number, most, self.seed) for task, number in zip(full, texts, strict=True)]
        self._keep(self.world.broadcast(rows))

    def _speed(self, task: RetrievalTask) -> float:
        """Documents of a task embedded in a second, by all processes together."""
        order = np.random.default_rng(self.seed).permutation(len(task.documents))
        seconds = PROBED * self.options.budget_seconds / len(self.full)
        encode = partial(self._encode, role="document")
        with tagged(self.model, task):
            speed = texts_per_second(encode, [task.documents[row] for row in order], seconds)
        return float(self.world.sum(torch.tensor(speed, dtype=torch.float64)))

    def _keep(self, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self.rows = list(rows)
        self.tasks = [subset(task, *chosen) for task, chosen in zip(self.full, self.rows, strict=True)]
        self.digests = [_digest(task) for task in self.tasks]

    def describe(self) -> str:
        """What is looked at, when, and what is kept by it."""
        tasks = ", ".join(
            f"{task.name} ({_of(task.queries, full.queries)} queries, "
            f"{_of(task.documents, full.documents)} documents)"
            for task, full in zip(self.tasks, self.full, strict=True)
        )
        every = (
            f"{self.options.every_steps} steps"
            if self.options.every_steps
            else f"{self.options.every_minutes:g} minutes"
        )
        doubt = "; scores of so few queries say little: raise evaluate.budget_seconds" if self._few() else ""
        return (
            f"every {every}, {self.options.metric} on {tasks}; "
            f"checkpoints/best keeps the model of the highest mean {self.options.metric}{doubt}"
        )

    def _few(self) -> bool:
        """Whether a task was cut to fewer than ``FEW`` queries."""
        queries = [len(task.queries) for task in self.tasks]
        return any(now < min(FEW, len(full.queries)) for now, full in zip(queries, self.full, strict=True))

    # ---- looking -------------------------------------------------------------------------------------

    def due(self, moment: Moment) -> bool:
        if self.options.every_steps:
            return moment.last or moment.step % self.options.every_steps == 0
        return moment.last or moment.seconds - self.looked >= 60 * (self.options.every_minutes or 0)

    def look(self, moment: Moment) -> Look:
        self.looked = moment.seconds
        found = self.scores()
        mean = found["evaluation_mean"]
        better = mean is not None and mean > self.best
        if better:
            self.best = mean
        best = (self.options.metric, mean) if better else None
        return Look(found, [self._sentence(moment.step, found, better)], best)

    def scores(self) -> dict[str, Any]:
        """Entries of the log: the score of every task and their mean, None where the time did not suffice."""
        deadline = Deadline(self.options.budget_seconds)
        scores: dict[str, float] | None = None
        with suppress(Overrun):
            scores = {task.name: self._score(task, deadline) for task in self.tasks}
        return {
            "evaluation": scores,
            "evaluation_mean": sum(scores.values()) / len(scores) if scores else None,
            "evaluation_metric": self.options.metric,
            "evaluation_texts": blake2b("".join(self.digests).encode(), digest_size=6).hexdigest(),
            "evaluation_seconds": round(deadline.passed, 3),
        }

    def _sentence(self, step: int, found: dict[str, Any], better: bool) -> str:
        """What ``scores`` found, for the eye."""
        seconds = found["evaluation_seconds"]
        if found["evaluation"] is None:
            return (
                f"warning: step {step}: the evaluation was abandoned after {seconds:.1f} s, its budget is "
                f"{self.options.budget_seconds:g} s"
            )
        scores = ", ".join(f"{name} {score:.4f}" for name, score in found["evaluation"].items())
        best = ", the best so far" if better else ""
        mean = f"{self.options.metric} {found['evaluation_mean']:.4f}"
        return f"step {step}: {mean}{best} ({scores}; {seconds:.1f} s)"

    def _score(self, task: RetrievalTask, deadline: Deadline) -> float:
        with tagged(self.model, task):
            query_QM = self._vectors(task.queries, "query", deadline)
            document_NM = self._vectors(task.documents, "document", deadline)
        metric = self.options.metric
        own_Q = task.own_Q
        wanted = parse_metric(metric)[1] or TOP_K
        k = min(wanted + (own_Q is not None), len(document_NM))
        mine = list(self.world.share(len(query_QM)))
        ranked_QK = np.zeros((len(query_QM), k), dtype=np.int64)
        ranked_QK[mine] = self._in_time(
            lambda: search_parts(query_QM[mine], deadline.parts(document_NM), len(document_NM), k).index
        )
        self.world.sum(torch.from_numpy(ranked_QK))
        ranked_QK = without_own(ranked_QK, own_Q, wanted)
        return float(evaluate_ranking(ranked_QK, task.qrels, [metric])[metric].mean())

    def _vectors(self, texts: Sequence[str], role: str, deadline: Deadline) -> np.ndarray:
        """The vectors of ``texts``, ``(N, M)``: each process embeds as many of every length as the others."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        mine = order[self.world.rank :: self.world.size]
        vector_NM = np.zeros((len(texts), self.model.dim), dtype=np.float32)
        vector_NM[mine] = self._in_time(
            lambda: self._encode([texts[row] for row in mine], role, deadline.check)
        )
        self.world.sum(torch.from_numpy(vector_NM))
        return vector_NM

    def _in_time(self, work: Callable[[], T]) -> T:
        """What ``work`` gives; Overrun in every process as soon as one of them has it."""
        try:
            result, late = work(), False
        except Overrun:
            late = True
        if self.world.any(late):
            raise Overrun
        return result

    def _encode(
        self, texts: list[str], role: str, progress: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """As `Embedder.vectors`, in the precision of training."""
        kind = self.model.device.split(":")[0]
        with torch.autocast(kind, self.precision, enabled=self.precision != torch.float32):
            rows, _ = self.model.rows(texts, role=role)
            known = self.model.prompt_tokens(role=role)
            tags = self.model.tag_numbers(texts, role=role)
            return self.model.embed(
                rows, batch_tokens=self.batch_tokens, progress=progress, prompt_tokens=known, tags=tags
            )

    # ---- a resumed run -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        rows = [
            (torch.from_numpy(query_Q), torch.from_numpy(document_N)) for query_Q, document_N in self.rows
        ]
        return {"best": self.best, "looked": self.looked, "rows": rows, "digests": self.digests}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError where a task is no longer what the run began with."""
        self.best, self.looked = state["best"], state["looked"]
        rows = [(query_Q.cpu().numpy(), document_N.cpu().numpy()) for query_Q, document_N in state["rows"]]
        for task, (query_Q, document_N) in zip(self.full, rows, strict=True):
            if query_Q.max() >= len(task.queries) or document_N.max() >= len(task.documents):
                raise _changed(task)
        self._keep(rows)
        for task, now, before in zip(self.tasks, self.digests, state["digests"], strict=True):
            if now != before:
                raise _changed(task)


def _of(some: Sequence[str], full: Sequence[str]) -> str:
    return f"{len(full):,}" if len(some) == len(full) else f"{len(some):,} of {len(full):,}"


def _digest(task: RetrievalTask) -> str:
    """Of the texts and of the judgements."""
    digest = blake2b(digest_size=16)
    for numbers in (task.qrels.offset, task.qrels.document, task.qrels.grade):
        digest.update(numbers.tobytes())
    for text in (*task.queries, *task.documents):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def _changed(task: RetrievalTask) -> UserError:
    return UserError(
        f"the task {task.name} is not what it was when the run began: restore its files, or train anew"
    )
