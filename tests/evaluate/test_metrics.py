from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moembed.evaluate import metrics
from moembed.evaluate.metrics import METRICS, Qrels, evaluate_ranking, parse_metric
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
