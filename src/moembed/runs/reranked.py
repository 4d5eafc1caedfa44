"""Systems of an evaluation once more, with a cross-encoder that orders what they found."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from moembed.encoding import Bar
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import Task
from moembed.evaluation.result import Cost
from moembed.evaluation.second_look import num_pairs, rerank
from moembed.machine import best_dtype
from moembed.reranker import Reranker
from moembed.runs.system import EvaluationOptions, Outcome
from moembed.types import UserError


def judge_of(options: EvaluationOptions, tasks: Sequence[Task]) -> Reranker | None:
    """The cross-encoder of ``options.rerank``, loaded; None where none is asked for.

    Raises:
        UserError: it cannot be read, or no task here has documents to put in order.
    """
    if options.rerank is None:
        return None
    if not any(isinstance(task, RetrievalTask) for task in tasks):
        raise UserError("rerank orders documents, and no task here is one of retrieval: leave rerank out")
    if isinstance(options.rerank, Reranker):
        return options.rerank
    dtype = best_dtype() if options.dtype == "auto" else options.dtype
    return Reranker.from_pretrained(options.rerank, dtype=dtype, allow_pickle=options.allow_pickle)


def reranked_name(system: str, options: EvaluationOptions) -> str:
    """What the system is called with the cross-encoder behind it."""
    return f"{system} + {options.rerank if isinstance(options.rerank, (str, Path)) else 'reranker'}"


def rerank_outcome(
    name: str,
    found: Outcome,
    judge: Reranker,
    tasks: Sequence[Task],
    options: EvaluationOptions,
    bar: Bar,
) -> Outcome:
    """What a system scores with the judge behind it; of tasks without documents there are no scores.

    ``truncated`` counts pairs of query and document, ``seconds`` what the judge took alone.
    """
    outcome = Outcome()
    ranked = [task for task in tasks if isinstance(task, RetrievalTask) and task.name in found.scores]
    total = sum(num_pairs(found.scores[task.name], options.candidates) for task in ranked)
    with bar(name, total) as advance:
        for task in ranked:
            start, first = time.perf_counter(), found.scores[task.name]
            outcome.scores[task.name], outcome.truncated[task.name] = rerank(
                task, first, judge, options.candidates, options.metrics, advance
            )
            outcome.seconds[task.name] = time.perf_counter() - start
    outcome.cost = Cost(
        parameters=judge.num_parameters(), active_parameters=judge.num_parameters(active=True)
    )
    space = found.about.get("space_id", "words")
    outcome.about = {"space_id": f"{space}, reranked by {judge.source}", "dtype": judge.dtype}
    return outcome
