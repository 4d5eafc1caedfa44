"""How long does it take to evaluate a model, and in how much memory, beside sentence-transformers and mteb?

Questions and paragraphs of squad-dev-en in MOEMBED_DATA, all-MiniLM-L6-v2 at 256 tokens: texts to scores,
the task and the model being loaded. Every run is a process of its own; its peak memory holds the libraries.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from moembed.embedder import Embedder
from moembed.evaluation.beir import RetrievalTask, load_task
from moembed.evaluation.metrics import Qrels
from moembed.evaluation.tasks import evaluate
from moembed.runs.bench import Alone, AloneError, Options, Row, Timing, alone, missing, ratio

from . import models, runtimes, texts

TASK, LENGTH, QUICK = "squad-dev-en", 256, 1000  # tokens of a text, queries of a quick run
METRICS = ("ndcg@10", "recall@10", "mrr@10", "map@100")
TARGET = "<= 0.7"
TIMEOUT = 1800.0  # seconds of one run

Run = Callable[[], dict[str, float]]


def ours(form: str, task: RetrievalTask) -> Run:
    model = Embedder.from_pretrained(models.minilm(), dtype=form, device="cpu")
    model.tokenizer.max_length = LENGTH

    def run() -> dict[str, float]:
        scores = evaluate(task, model, METRICS)
        return {metric: float(value_Q.mean()) for metric, value_Q in scores.values.items()}

    return run


def sentence_transformers(task: RetrievalTask) -> Run:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    evaluator = InformationRetrievalEvaluator(
        dict(zip(task.query_ids, task.queries, strict=True)),
        dict(zip(task.document_ids, task.documents, strict=True)),
        relevant(task),
        mrr_at_k=[10],
        ndcg_at_k=[10],
        accuracy_at_k=[10],
        precision_recall_at_k=[10],
        map_at_k=[100],
        write_csv=False,
    )
    model = peer_model()

    def run() -> dict[str, float]:
        found = evaluator(model)
        return {metric: found[f"cosine_{metric}"] for metric in METRICS}

    return run


def mteb(task: RetrievalTask) -> Run:
    import mteb

    from moembed.evaluation.mteb_tasks import local_task

    made, model = local_task(task), peer_model()

    def run() -> dict[str, float]:
        result = mteb.evaluate(model, made, cache=None, co2_tracker=False, show_progress_bar=False)
        found = result.task_results[0].scores["test"][0]
        return {metric: found[metric.replace("@", "_at_")] for metric in METRICS}

    return run


def peer_model() -> Any:
    model = runtimes.sentence_transformer(models.minilm(), torch.float32)
    model.max_seq_length = LENGTH
    return model


def relevant(task: RetrievalTask) -> dict[str, set[str]]:
    ids = np.array(task.document_ids)
    judged = np.split(np.arange(len(task.qrels.document)), task.qrels.offset[1:-1])
    kept = (rows[task.qrels.grade[rows] > 0] for rows in judged)
    return {
        query: set(ids[task.qrels.document[rows]].tolist())
        for query, rows in zip(task.query_ids, kept, strict=True)
    }


OURS, PEERS = "moembed float32", ("sentence-transformers", "mteb")
CONTENDERS: dict[str, Callable[[RetrievalTask], Run]] = {
    OURS: partial(ours, "float32"),
    "moembed bfloat16": partial(ours, "bfloat16"),
    "sentence-transformers": sentence_transformers,
    "mteb": mteb,
}


@dataclass(frozen=True)
class Evaluated:
    seconds: float
    scores: dict[str, float]


def measure(name: str, queries: int | None, threads: int) -> Evaluated:
    warnings.simplefilter("ignore")  # that texts are cut is the same for all
    torch.set_num_threads(threads)
    task = load_task(texts.DATA / "eval" / TASK)
    run = CONTENDERS[name](task if queries is None else first(task, queries))
    start = time.perf_counter()
    scores = run()
    return Evaluated(time.perf_counter() - start, scores)


def first(task: RetrievalTask, queries: int) -> RetrievalTask:
    """The first queries of a task, and the documents up to the last that is judged for one of them."""
    qrels = task.qrels
    end = qrels.offset[queries]
    fewer = Qrels(qrels.offset[: queries + 1], qrels.document[:end], qrels.grade[:end])
    documents = fewer.document.max() + 1
    return replace(
        task,
        queries=task.queries[:queries],
        query_ids=task.query_ids[:queries],
        documents=task.documents[:documents],
        document_ids=task.document_ids[:documents],
        qrels=fewer,
    )


def rows(options: Options) -> Iterator[Row]:
    folder = texts.DATA / "eval" / TASK
    if not folder.is_dir():
        yield Row("evaluate", TASK, note=f"there is no {folder}: MOEMBED_DATA names the folder of the data")
        return
    queries = QUICK if options.quick else None
    runs: dict[str, list[Alone]] = {name: [] for name in CONTENDERS}
    for name in PEERS:
        if note := missing(name):
            yield Row("evaluate", name, note=note)
            del runs[name]
    for _ in range(options.repeats):
        for name in list(runs):
            try:
                runs[name].append(alone(measure, name, queries, options.threads, timeout=TIMEOUT))
            except AloneError as error:
                yield Row("evaluate", name, note=str(error))
                del runs[name]
    yield from compared(f"{TASK}, {queries or 'all'} queries", runs)


def compared(question: str, runs: dict[str, list[Alone]]) -> Iterator[Row]:
    timings = {name: Timing(tuple(run.result.seconds for run in some)) for name, some in runs.items()}
    peaks = {name: max(run.peak_bytes for run in some) / 2**20 for name, some in runs.items()}
    peers = [name for name in PEERS if name in runs]
    fastest = min(peers, key=lambda name: timings[name].median, default=None)
    leanest = min(peers, key=lambda name: peaks[name], default=None)
    for name, timing in timings.items():
        scores = ", ".join(f"{metric} {value:.4f}" for metric, value in runs[name][0].result.scores.items())
        time_row = Row(f"{question}, time", name, timing.median, "s", timing.spread, note=scores)
        peak_row = Row(f"{question}, peak memory", name, peaks[name], "MiB")
        if fastest and leanest and name not in PEERS:
            target = TARGET if name == OURS else None
            faster, smaller = ratio(timings, name, fastest), peaks[name] / peaks[leanest]
            time_row = replace(time_row, ratio=faster, peer=fastest, target=target)
            peak_row = replace(peak_row, ratio=smaller, peer=leanest, target=target)
        yield time_row
        yield peak_row
