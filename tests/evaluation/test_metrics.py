from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moembed.evaluation import metrics
from moembed.evaluation.metrics import METRICS, Qrels, evaluate_ranking, parse_metric
from moembed.types import UserError

NAMES = [f"{kind}{cut}" for kind in METRICS for cut in ("@1", "@3", "@10", "")]


def make_qrels(graded: list[dict[int, float]]) -> Qrels:
    judged = [(query, document, grade) for query, row in enumerate(graded) for document, grade in row.items()]
    query_R, document_R, grade_R = np.array(judged, dtype=float).reshape(-1, 3).T
    return Qrels.from_judgements(query_R.astype(int), document_R.astype(int), grade_R, len(graded))


def score(ranked: list[int], graded: dict[int, float], name: str) -> float:
    return float(evaluate_ranking(np.array([ranked]), make_qrels([graded]), [name])[name][0])


def slow(ranked: list[int], graded: dict[int, float], kind: str, k: int) -> float:
    """The definitions of the metrics, one query and one result at a time."""
    gain = {document: grade for document, grade in graded.items() if grade > 0}
    if not gain:
        return math.nan
    top = ranked[:k]
    hits = [document in gain for document in top]
    if kind == "ndcg":
        ideal = sorted(gain.values(), reverse=True)[:k]
        best = sum(grade / math.log2(i + 2) for i, grade in enumerate(ideal))
        return sum(gain.get(document, 0) / math.log2(i + 2) for i, document in enumerate(top)) / best
    if kind == "recall":
        return sum(hits) / len(gain)
    if kind == "precision":
        return sum(hits) / k
    if kind == "hole":
        return sum(document not in graded for document in top) / k
    if kind == "mrr":
        return 1 / (hits.index(True) + 1) if any(hits) else 0.0
    assert kind == "map"
    return sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit) / len(gain)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ndcg@3", (1 / math.log2(3) + 2 / math.log2(4)) / (2 / 1 + 1 / math.log2(3) + 1 / math.log2(4))),
        ("ndcg@1", 0.0),
        ("recall@3", 2 / 3),
        ("recall@1", 0.0),
        ("precision@2", 1 / 2),
        ("precision@10", 3 / 10),
        ("mrr@10", 1 / 2),
        ("mrr@1", 0.0),
        ("map", (1 / 2 + 2 / 3 + 3 / 5) / 3),
        ("map@3", (1 / 2 + 2 / 3) / 3),
        ("hole@5", 1 / 5),
        ("hole@10", 1 / 10),
        ("hole@3", 0.0),
    ],
)
def test_hand_worked_example(name: str, expected: float) -> None:
    # Relevant: 4 (grade 2), 7 and 9 (grade 1); 5 was judged and found irrelevant.
    assert score([5, 7, 4, 0, 9], {4: 2, 5: 0, 7: 1, 9: 1}, name) == pytest.approx(expected)


graded_queries = st.lists(
    st.tuples(
        st.permutations(range(12)),
        st.integers(1, 12),
        st.dictionaries(st.integers(0, 11), st.sampled_from([-1.0, 0.0, 1.0, 2.0, 3.5]), max_size=12),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None)
@given(graded_queries)
def test_agrees_with_the_definitions(queries: list[tuple[list[int], int, dict[int, float]]]) -> None:
    ranked_QK = np.full((len(queries), 12), -1)
    for row, (documents, length, _) in enumerate(queries):
        ranked_QK[row, :length] = documents[:length]
    result = evaluate_ranking(ranked_QK, make_qrels([graded for *_, graded in queries]), NAMES)
    for name in NAMES:
        kind, cut = parse_metric(name)
        expected = [slow(documents[:n], graded, kind, cut or 12) for documents, n, graded in queries]
        np.testing.assert_allclose(result[name], expected, rtol=1e-12)
        judged = result[name][~np.isnan(result[name])]
        assert ((judged >= 0) & (judged <= 1 + 1e-12)).all()


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 30), st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 5))
def test_the_ideal_ranking_scores_one_whatever_follows_it(graded: dict[int, int], tail: int) -> None:
    best_first = sorted(graded, key=lambda document: -graded[document])
    ranked = best_first + list(range(100, 100 + tail))
    for name in ("ndcg", "ndcg@3", "recall", "mrr@10", "map", "map@50"):
        assert score(ranked, graded, name) == pytest.approx(1)


def test_the_order_of_judgements_does_not_matter() -> None:
    query_R, document_R = np.array([1, 0, 1, 0]), np.array([3, 2, 0, 9])
    grade_R = np.array([1.0, 2, 3, 1])
    ranked_QK = np.array([[9, 2, 1], [4, 3, 0]])
    reference = evaluate_ranking(ranked_QK, make_qrels([{2: 2, 9: 1}, {3: 1, 0: 3}]), ["ndcg"])["ndcg"]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        qrels = Qrels.from_judgements(query_R[order], document_R[order], grade_R[order], 2)
        np.testing.assert_array_equal(evaluate_ranking(ranked_QK, qrels, ["ndcg"])["ndcg"], reference)


def test_a_document_ranked_twice_counts_once() -> None:
    assert score([3, 3, 3], {3: 1, 4: 1}, "recall@3") == 0.5
    assert score([3, 3, 3], {3: 1}, "ndcg@3") == 1


NAME_OF = {
    "ndcg": "ndcg", "ndcg@1": "ndcg_cut_1", "ndcg@5": "ndcg_cut_5", "ndcg@10": "ndcg_cut_10",
    "recall@1": "recall_1", "recall@5": "recall_5", "recall@10": "recall_10",
    "precision@1": "P_1", "precision@5": "P_5", "precision@10": "P_10",
    "map": "map", "map@5": "map_cut_5", "mrr": "recip_rank",
}  # fmt: skip


@pytest.mark.parametrize("seed", range(25))
def test_equals_trec_eval(seed: int) -> None:
    """Random grades, many ties, rankings of any length, none for query 1, nothing relevant to query 0.

    trec_eval breaks a tie by document id, the greater first, so our rankings are made so here.
    """
    trec_eval = pytest.importorskip("pytrec_eval")
    rng = np.random.default_rng(seed)
    queries, documents, k = 30, 40, 15
    names = [f"d{n:02}" for n in range(documents)]
    graded: list[dict[int, float]] = []
    run: dict[str, dict[str, float]] = {}
    ranked_QK = np.full((queries, k), -1)
    for query in range(queries):
        judged = rng.permutation(documents)[: rng.integers(1, 12)].tolist()
        graded.append({document: float(query and rng.integers(0, 4)) for document in judged})
        retrieved = rng.permutation(documents)[: rng.integers(0, k + 1) * (query != 1)].tolist()
        scores = {document: float(rng.integers(0, 6)) / 4 for document in retrieved}
        order = sorted(retrieved, key=lambda document: (scores[document], names[document]), reverse=True)
        ranked_QK[query, : len(order)] = order
        if scores:
            run[f"q{query}"] = {names[document]: score for document, score in scores.items()}
    qrels = {
        f"q{query}": {names[document]: int(grade) for document, grade in row.items()}
        for query, row in enumerate(graded)
    }
    expected = trec_eval.RelevanceEvaluator(qrels, set(NAME_OF.values())).evaluate(run)
    ours = evaluate_ranking(ranked_QK, make_qrels(graded), list(NAME_OF))
    relevant = [query for query, row in enumerate(graded) if max(row.values()) > 0]
    assert 0 not in relevant
    assert "q1" not in run
    for name, theirs in NAME_OF.items():
        for query in relevant:  # one that is missing from the run found nothing
            found = expected[f"q{query}"][theirs] if f"q{query}" in run else 0.0
            assert ours[name][query] == pytest.approx(found, abs=1e-9), (name, query)


def test_the_pytrec_eval_test_covers_every_metric_it_has() -> None:
    assert {name.partition("@")[0] for name in NAME_OF} == METRICS.keys() - {"hole"}


def test_queries_without_relevant_documents_are_nan_for_every_metric() -> None:
    result = evaluate_ranking(np.array([[0, 1], [1, 0], [0, 1]]), make_qrels([{0: 1}, {}, {0: 0}]), NAMES)
    for scores in result.values():
        np.testing.assert_array_equal(np.isnan(scores), [False, True, True])


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    ranked_QK = np.array([rng.permutation(50)[:20] for _ in range(30)])
    qrels = make_qrels([dict.fromkeys(rng.permutation(50)[:5].tolist(), 1.0) for _ in range(30)])
    whole = evaluate_ranking(ranked_QK, qrels, NAMES)
    monkeypatch.setattr(metrics, "_BLOCK_CELLS", 37)
    for name, scores in evaluate_ranking(ranked_QK, qrels, NAMES).items():
        np.testing.assert_array_equal(scores, whole[name])


def test_many_queries_are_fast() -> None:
    queries, k = 20_000, 200
    rng = np.random.default_rng(0)
    ranked_QK = rng.integers(1_000_000, size=(queries, k))
    qrels = Qrels.from_judgements(np.arange(queries), ranked_QK[:, 7].copy(), np.ones(queries), queries)
    start = time.perf_counter()
    result = evaluate_ranking(ranked_QK, qrels, ["ndcg@10", "map"])
    assert time.perf_counter() - start < 5
    assert np.nanmean(result["ndcg@10"]) > 0.3


@pytest.mark.parametrize("name", ["ndgc@10", "", "ndcg@", "ndcg@0", "ndcg@-1", "ndcg@1.5", "ndcg@²", "@10"])
def test_unknown_metrics_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="metric"):
        parse_metric(name)


def test_every_metric_parses_with_and_without_a_cut() -> None:
    for kind in METRICS:
        assert parse_metric(kind) == (kind, None)
        assert parse_metric(f"{kind}@5") == (kind, 5)


@pytest.mark.parametrize("ranked_QK", [np.zeros((2, 3), int), np.zeros(1, int), np.zeros((1, 0), int)])
def test_rankings_of_another_shape_are_refused(ranked_QK: np.ndarray) -> None:
    with pytest.raises(UserError, match="do not fit"):
        evaluate_ranking(ranked_QK, make_qrels([{0: 1}]), ["ndcg"])


@pytest.mark.parametrize(
    ("query", "document", "message"),
    [([0, 0], [4, 4], "twice"), ([0, 2], [4, 4], "outside"), ([-1], [0], "outside"), ([0], [-1], "negative")],
)
def test_impossible_judgements_are_refused(query: list[int], document: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Qrels.from_judgements(np.array(query), np.array(document), np.ones(len(query)), 2)
