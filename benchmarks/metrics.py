"""Is computing the metrics of a large retrieval task a matter of seconds?

Random rankings of random documents with five graded judgements a query, half of them of documents that were
found. trec_eval, by pytrec_eval, gets a tenth of the queries, as the dictionaries it reads, made beforehand;
what it would take for all of them is extrapolated and says so.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moembed.evaluation.metrics import Qrels, evaluate_ranking
from moembed.runs.bench import Options, Row, Timing, interleave, missing, time_row

METRICS = {
    "ndcg@10": "ndcg_cut_10",
    "recall@10": "recall_10",
    "recall@100": "recall_100",
    "mrr@10": "recip_rank",
    "map": "map",
    "precision@10": "P_10",
}
DOCUMENTS, DEPTH, JUDGED, GRADES = 1_000_000, 1000, 5, 4
SHARE = 10  # one query in so many is given to the peer
MOST = 5000  # milliseconds
PEER = "pytrec_eval"


def rows(options: Options) -> Iterator[Row]:
    queries = 10_000 if options.quick else 100_000
    ranked_QK, qrels = made(queries)
    contenders = {"moembed": lambda: evaluate_ranking(ranked_QK, qrels, list(METRICS))}
    if note := missing("pytrec-eval-terrier"):
        yield Row("metrics", PEER, note=note)
    else:
        import pytrec_eval

        run, judged = as_dictionaries(ranked_QK, qrels, queries // SHARE)
        peer = pytrec_eval.RelevanceEvaluator(judged, set(METRICS.values()))
        contenders[PEER] = lambda: peer.evaluate(run)
    timings = interleave(contenders, options.repeats)
    question = f"{len(METRICS)} metrics, {queries:,} queries × {DEPTH:,} results"
    target = None if options.quick else f"<= {MOST}"
    yield time_row(question, timings, "moembed", target=target, note=f"one thread; {', '.join(METRICS)}")
    if PEER in timings:
        whole = Timing(tuple(SHARE * seconds for seconds in timings[PEER].seconds))
        note = f"extrapolated from {queries // SHARE:,} queries, not run"
        yield time_row(question, {**timings, PEER: whole}, PEER, "moembed", note=note)


def made(queries: int) -> tuple[np.ndarray, Qrels]:
    generator = np.random.default_rng(0)
    # documents an odd step apart never meet again within a ranking
    first_Q1 = generator.integers(DOCUMENTS, size=(queries, 1))
    ranked_QK = (first_Q1 + 7919 * np.arange(DEPTH)) % DOCUMENTS
    place_QJ = np.sort(generator.random((queries, JUDGED)), axis=1) * 2 * DEPTH
    place_QJ = place_QJ.astype(np.int64) + np.arange(JUDGED)  # beyond DEPTH: documents that were not found
    document_QJ = (first_Q1 + 7919 * place_QJ) % DOCUMENTS
    query_R = np.repeat(np.arange(queries), JUDGED)
    grade_R = generator.integers(GRADES, size=len(query_R))
    grade_R[::JUDGED] = 1  # something is relevant to every query
    return ranked_QK, Qrels.from_judgements(query_R, document_QJ.ravel(), grade_R, queries)


def as_dictionaries(
    ranked_QK: np.ndarray, qrels: Qrels, queries: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """The first queries in the form that pytrec_eval reads."""
    name = np.array([f"d{row}" for row in range(DOCUMENTS)], dtype=object)
    score_K = np.arange(DEPTH, 0, -1, dtype=np.float64).tolist()
    run = {f"q{q}": dict(zip(name[ranked_QK[q]], score_K, strict=True)) for q in range(queries)}
    judged: dict[str, dict[str, int]] = {query: {} for query in run}
    for q, document, grade in zip(qrels.query_R, qrels.document, qrels.grade, strict=True):
        if q >= queries:
            break
        judged[f"q{q}"][name[document]] = int(grade)
    return run, judged
