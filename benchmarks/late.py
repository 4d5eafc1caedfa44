"""How near is MUVERA to exact MaxSim, and at which share of its cost?

Documents and questions of SciFact as token vectors of MiniLM, without training. Of every question the 10 and
the 100 documents of the highest exact MaxSim are searched; the recall is the share of them among the
candidates that products of encodings find, for these are then scored exactly. What a search is for are the
documents that answer, though: of these, how many are among the first 10 and 100, as a share of what exact
MaxSim finds. The cost counts
multiplications: of the exact search ``T_q · T_all · M``, of MUVERA the encoding of the question, ``N · dim``
products of encodings, and the tokens of the candidates. Seconds are of one process beside whatever else runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moembed.encoding import TokenVectors
from moembed.runs.bench import Options, Row
from moembed.search.fde import Fde, FdeConfig
from moembed.search.late_search import best_products, late_search
from moembed.search.token_parts import take
from moembed.types import UserError

KS = (10, 100)
K = max(KS)
SHARES = (0.02, 0.04, 0.06, 0.08)  # of the documents: candidates that are scored exactly
MAX_TOKENS = 64  # of a document
GRID = (
    *({"repetitions": r, "k_sim": 5, "d_proj": 16} for r in (5, 10, 20, 40)),
    *({"repetitions": 20, "k_sim": k, "d_proj": 16} for k in (3, 4, 6)),
    *({"repetitions": 20, "k_sim": 5, "d_proj": d} for d in (8, 32)),
    {"repetitions": 20, "k_sim": 5, "d_proj": 16, "final_dim": 2048},
)


@dataclass(frozen=True)
class Exact:
    """The best ``K`` of every question by MaxSim, what they cost, and the share of the answers they hold."""

    best_QK: np.ndarray
    answers: dict[int, float]
    multiplications: int
    seconds: float


@dataclass(frozen=True)
class Found:
    """One encoding: recall and cost by number of candidates."""

    recall: dict[int, dict[int, float]]  # of the best so many
    answers: dict[int, dict[int, float]]  # of the answers, among the first so many
    share: dict[int, float]  # of the exact multiplications
    seconds: dict[int, float]
    encoding_seconds: float  # of all documents


def rows(options: Options) -> Iterator[Row]:
    documents, queries, answers = tokens(500, 20) if options.quick else tokens()
    exact = exact_search(documents, queries, answers)
    size = f"{len(documents):,} documents of {documents.length_N.mean():.0f} tokens, {len(queries)} questions"
    yield Row("exact MaxSim", size, exact.seconds, "s")
    for k, value in exact.answers.items():
        yield Row(f"recall@{k} of the answers, exact MaxSim", size, value)
    for values in GRID[:2] if options.quick else GRID:
        found = measured(
            FdeConfig(documents.vector_TM.shape[1], **values), documents, queries, answers, exact
        )
        name = ", ".join(f"{key} {value}" for key, value in values.items())
        for count, recall in found.recall.items():
            note = f"{found.share[count]:.1%} of the multiplications, {found.seconds[count]:.1f} s"
            for k, value in recall.items():
                question = f"recall@{k} of exact MaxSim, {count} candidates"
                yield Row(question, name, value, note=note)
            for k, value in found.answers[count].items():
                question = f"recall@{k} of the answers over that of exact MaxSim, {count} candidates"
                yield Row(question, name, value / exact.answers[k], target=">= 0.95", note=note)


def tokens(
    most_documents: int | None = None, most_queries: int | None = None
) -> tuple[TokenVectors, TokenVectors, list[np.ndarray]]:
    """Token vectors of the documents and the questions, and the rows that answer each question."""
    from moembed.embedder import Embedder
    from moembed.evaluation.beir import load_task
    from moembed.folder.bases import read_base
    from moembed.weights.pooling import PoolingOptions, change_pooling

    data = os.environ.get("MOEMBED_DATA")
    if not data:
        raise UserError("this suite reads SciFact: set MOEMBED_DATA to the folder that has eval/scifact-en")
    task = load_task(Path(data) / "eval" / "scifact-en")
    model = Embedder(change_pooling(read_base("minilm"), PoolingOptions(name="tokens"))).eval()
    model.tokenizer.max_length = MAX_TOKENS
    documents = model.encode_tokens(task.documents[:most_documents])
    queries = model.encode_tokens(task.queries[:most_queries])
    qrels, answers = task.qrels, []
    for first, end in zip(qrels.offset[: len(queries)], qrels.offset[1:], strict=False):
        answers.append(qrels.document[first:end][qrels.grade[first:end] > 0])
    return documents, queries, answers


def exact_search(documents: TokenVectors, queries: TokenVectors, answers: list[np.ndarray]) -> Exact:
    started = time.perf_counter()
    every = np.broadcast_to(np.arange(len(documents)), (len(queries), len(documents)))
    best = late_search(queries, every, lambda _: documents, K).index
    seconds = time.perf_counter() - started
    found = {k: _answered(best[:, :k], answers) for k in KS}
    return Exact(best, found, len(queries.vector_TM) * documents.vector_TM.size, seconds)


def measured(
    config: FdeConfig,
    documents: TokenVectors,
    queries: TokenVectors,
    answers: list[np.ndarray],
    exact: Exact,
) -> Found:
    fde = Fde(config)
    started = time.perf_counter()
    document_NF = fde.documents(documents)
    encoding_seconds = time.perf_counter() - started
    started = time.perf_counter()
    query_QF = fde.queries(queries)
    queries_seconds = time.perf_counter() - started
    width, dim = config.token_dim, config.dim
    # planes and projection of every token of a question, then one product with every document
    cheap = len(queries.vector_TM) * width * config.repetitions * (config.k_sim + config.d_proj)
    cheap += len(queries) * len(documents) * dim
    recall: dict[int, dict[int, float]] = {}
    answered: dict[int, dict[int, float]] = {}
    shares: dict[int, float] = {}
    seconds: dict[int, float] = {}
    for count in (round(share * len(documents)) for share in SHARES):
        started = time.perf_counter()
        candidate_QC = best_products(query_QF, [document_NF], count)
        best_QK = late_search(queries, candidate_QC, lambda row_K: take(documents, row_K), K).index
        seconds[count] = queries_seconds + time.perf_counter() - started
        answered[count] = {k: _answered(best_QK[:, :k], answers) for k in KS}
        recall[count] = {k: _recall(candidate_QC, exact.best_QK[:, :k]) for k in KS if k <= count}
        scored = documents.length_N[candidate_QC].sum(axis=1) @ queries.length_N * width
        shares[count] = float((cheap + scored) / exact.multiplications)
    return Found(recall, answered, shares, seconds, encoding_seconds)


def _recall(candidate_QC: np.ndarray, best_QK: np.ndarray) -> float:
    pairs = zip(candidate_QC, best_QK, strict=True)
    return float(np.mean([len(np.intersect1d(*pair)) for pair in pairs]) / best_QK.shape[1])


def _answered(best_QK: np.ndarray, answers: list[np.ndarray]) -> float:
    """Mean recall: of the documents that answer a question, the share that are among its best."""
    return float(np.mean([np.isin(rows, best).mean() for rows, best in zip(answers, best_QK, strict=True)]))
