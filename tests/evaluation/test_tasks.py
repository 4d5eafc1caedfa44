from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from function_encoder import FunctionEncoder
from moembed.compare.scores import MAIN, Scores, statistic
from moembed.evaluation import tasks
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import LabelTask, PairTask, Task
from moembed.evaluation.metrics import METRICS, Qrels
from moembed.evaluation.probes import REPEATS, SAMPLES
from moembed.evaluation.tasks import DEFAULT_METRICS, evaluate_bm25, metrics_of
from moembed.types import UserError

DOCUMENTS = ["moles dig tunnels", "voles eat roots", "", "owls hunt voles"]
QUERIES = ["who digs tunnels?", "who eats roots?"]


def letters(texts: list[str], role: str = "") -> np.ndarray:
    """How often every letter occurs, a stand-in for a model."""
    count_BM = np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], np.float32)
    return count_BM / np.maximum(np.linalg.norm(count_BM, axis=1, keepdims=True), 1)


def same(texts: list[str], role: str) -> np.ndarray:
    return np.ones((len(texts), 2), np.float32)


Encode = Callable[[list[str], str], np.ndarray]


def evaluate(task: Task, encode: Encode, metrics: Sequence[str] | None = None, top_k: int = 100) -> Scores:
    return tasks.evaluate(task, FunctionEncoder(encode), metrics, top_k)


def given_vectors(vectors: dict[str, list[float]]) -> Encode:
    return lambda texts, role: np.array([vectors[text] for text in texts], np.float32)


def retrieval(
    queries: list[str] = QUERIES,
    documents: list[str] = DOCUMENTS,
    judged: tuple[tuple[int, int, float], ...] = ((0, 0, 1), (1, 1, 2), (1, 3, 0)),
    kind: str = "retrieval",
) -> RetrievalTask:
    query_R, document_R, grade_R = map(np.array, zip(*judged, strict=True))
    qrels = Qrels.from_judgements(query_R, document_R, grade_R, len(queries))
    ids = [f"q{n}" for n in range(len(queries))]
    return RetrievalTask("some", queries, documents, qrels, ids, documents, [], {"q1": "en"}, kind)


def bitext(rows: list[tuple[str, str, str]]) -> PairTask:
    first, second, pair = map(list, zip(*rows, strict=True))
    return PairTask("some", "bitext", first, second, np.empty(0), pair, [])


def sts(rows: list[tuple[str, str, float]]) -> PairTask:
    first, second, gold = map(list, zip(*rows, strict=True))
    return PairTask("some", "sts", first, second, np.array(gold), ["en"] * len(rows), [])


def labelled(kind: str, rows: list[tuple[str, str, str]], languages: list[str] | None = None) -> LabelTask:
    texts, labels, split = map(list, zip(*rows, strict=True))
    train_N = np.array([value == "train" for value in split])
    return LabelTask("some", kind, texts, labels, train_N, languages or [""] * len(rows), [])


PAIRS = [("a mole digs", "a mole is digging", 5.0), ("owls hunt", "worms", 0.5), ("voles", "owls", 1.5)]
TEXTS = [
    (f"{word} {n}", word, split) for word in ("mole", "owl") for n in range(9) for split in ("train", "test")
]
ALL: list[Task] = [
    retrieval(),
    retrieval(kind="reranking"),
    sts(PAIRS),
    PairTask("some", "pair_classification", ["mole", "owl"], ["moles", "x"], np.arange(2.0), [""] * 2, []),
    bitext(
        [
            ("Maulwurf", "moles", "de-en"),
            ("Eulen", "owls", "de-en"),
            ("taupe", "moles", "fr-en"),
            ("x", "y", "fr-en"),
        ]
    ),
    labelled("classification", TEXTS),
    labelled("clustering", [(text, label, "") for text, label, _ in TEXTS]),
]
every_kind = pytest.mark.parametrize("task", ALL, ids=lambda task: task.kind)


def value(scores: Scores, metric: str) -> float:
    return statistic(metric)(scores.values[metric])


# ---- every kind --------------------------------------------------------------------------------------------


@every_kind
def test_every_item_has_a_place_a_language_a_length_and_its_values(task: Task) -> None:
    scores = evaluate(task, letters)
    assert (scores.task, scores.kind) == (task.name, task.kind)
    assert len(task) == len(scores.item) == len(set(scores.item)) == len(scores.language)
    assert scores.length.shape == (len(task),)
    assert list(scores.values) == list(DEFAULT_METRICS[task.kind])
    for values in scores.values.values():
        assert values.shape in ((len(task),), (len(task), 2))
        assert values.dtype == np.float64
        assert np.isfinite(values).all()


@every_kind
def test_the_same_vectors_give_the_same_scores(task: Task) -> None:
    first, second = evaluate(task, letters), evaluate(task, letters)
    for name, values in first.values.items():
        np.testing.assert_array_equal(values, second.values[name])


@every_kind
def test_a_model_that_cannot_tell_texts_apart_has_a_defined_score(task: Task) -> None:
    scores = evaluate(task, same)
    assert 0 <= value(scores, MAIN[task.kind]) < 1


@every_kind
def test_encoders_that_lose_a_text_or_return_nan_are_refused(task: Task) -> None:
    with pytest.raises(UserError, match=r"made \d+ vectors of \d+ \w+ texts: one each"):
        evaluate(task, lambda texts, role: letters(texts)[1:])
    with pytest.raises(UserError, match="NaN"):
        evaluate(task, lambda texts, role: letters(texts) * np.nan)


@every_kind
def test_roles(task: Task) -> None:
    asked: list[str] = []

    def encode(texts: list[str], role: str) -> np.ndarray:
        asked.append(role)
        return letters(texts)

    evaluate(task, encode)
    assert asked == (["query", "document"] if task.kind in ("retrieval", "reranking") else [task.kind])


@every_kind
def test_unknown_metrics_are_refused_before_anything_is_embedded(task: Task) -> None:
    def never(texts: list[str], role: str) -> np.ndarray:
        raise AssertionError

    with pytest.raises(
        UserError, match=r"unknown metric 'ndgc@10'; known are ndcg, .* and accuracy, ap, f1, pearson"
    ):
        evaluate(task, never, ["spearman", "ndgc@10"])
    with pytest.raises(UserError, match="cut-off"):
        evaluate(task, never, ["ndcg@0"])


@pytest.mark.parametrize(
    ("kind", "names", "expected"),
    [
        ("retrieval", ["spearman", "recall@5", "ndcg@10"], ["recall@5", "ndcg@10"]),
        ("retrieval", ["recall@5"], ["ndcg@10", "recall@5"]),
        ("retrieval", ["accuracy"], ["ndcg@10", "recall@10", "mrr@10"]),
        ("sts", ["ndcg@10", "pearson"], ["spearman", "pearson"]),
        ("bitext", ["accuracy", "ndcg@10"], ["f1", "accuracy"]),
        ("classification", ["ndcg@10", "map"], ["accuracy"]),
        ("clustering", [], ["v_measure"]),
        ("reranking", ["map", "map"], ["map"]),
    ],
)
def test_metrics_of_other_kinds_are_ignored(kind: str, names: list[str], expected: list[str]) -> None:
    assert metrics_of(kind, names) == expected


# ---- rankings ----------------------------------------------------------------------------------------------


def test_retrieval_ranks_by_cosine() -> None:
    scores = evaluate(retrieval(), letters, ["recall@1", "ndcg@10", "hole@2"])
    similarity = letters(QUERIES) @ letters(DOCUMENTS).T
    assert scores.values["recall@1"].tolist() == (similarity.argmax(axis=1) == [0, 1]).tolist()
    assert (scores.item, scores.language) == (["q0", "q1"], ["", "en"])
    assert scores.length.tolist() == [len(query) for query in QUERIES]
    assert scores.values["hole@2"].tolist() == [0.5, 0]


def test_rankings_are_as_long_as_the_deepest_cut_off() -> None:
    task = retrieval(QUERIES[:1], ["mole"] * 30, ((0, 20, 1),))
    for run in (lambda *a: evaluate(task, same, *a), lambda *a: evaluate_bm25(task, *a)):
        scores = run(["mrr@25", "mrr@5", "ndcg@10"], 1)
        assert scores.values["mrr@25"] == 1 / 21  # all tie, so row 20 comes 21st
        assert scores.values["mrr@5"] == 0
        assert run(["recall"], 10).values["recall"] == 0


def test_bm25_stands_beside_a_model() -> None:
    for kind in ("retrieval", "reranking"):
        scores = evaluate_bm25(retrieval(kind=kind), list(METRICS))
        assert scores is not None
        assert value(scores, "mrr") == 1
        assert all(values.shape == (2,) for values in scores.values.values())


@pytest.mark.parametrize("task", ALL[2:], ids=lambda task: task.kind)
def test_bm25_has_nothing_to_say_of_other_kinds(task: Task) -> None:
    assert evaluate_bm25(task) is None


RIVALS = retrieval(
    ["who digs?"], ["moles", "badgers", "owls", "the best"], ((0, 0, 1), (0, 1, 1), (0, 2, 0)), "reranking"
)


def test_reranking_looks_at_the_candidates_of_the_query_alone() -> None:
    vectors = {
        "who digs?": [1.0, 0],
        "moles": [1, 0.1],
        "owls": [1, 0.5],
        "badgers": [1, 1],
        "the best": [1.0, 0],
    }
    scores = evaluate(RIVALS, given_vectors(vectors))
    assert value(scores, "map") == (1 + 2 / 3) / 2
    assert value(scores, "mrr@10") == 1


def test_of_equal_reranking_scores_those_that_are_not_relevant_come_first() -> None:
    assert value(evaluate(RIVALS, same), "map") == (1 / 2 + 2 / 3) / 2
    lexical = evaluate_bm25(RIVALS)  # no candidate has a word of the query
    assert lexical is not None
    assert value(lexical, "map") == (1 / 2 + 2 / 3) / 2


def test_reranking_lists_may_have_different_lengths() -> None:
    judged = ((0, 0, 0), (0, 1, 0), (0, 2, 1), (1, 3, 1), (1, 0, 0))
    scores = evaluate(retrieval(judged=judged, kind="reranking"), same)
    assert scores.values["mrr@10"].tolist() == [1 / 3, 1 / 2]


# ---- pairs -------------------------------------------------------------------------------------------------


def test_sts_pairs_cosines_with_gold_scores() -> None:
    scores = evaluate(sts(PAIRS), letters)
    expected = [(letters([a]) @ letters([b]).T).item() for a, b, _ in PAIRS]
    np.testing.assert_allclose(scores.values["spearman"][:, 0], expected, atol=1e-6)
    assert scores.values["pearson"][:, 1].tolist() == [5, 0.5, 1.5]
    assert scores.length.tolist() == [len(a) + len(b) for a, b, _ in PAIRS]
    assert scores.notes == []


def test_correlations_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    rows = [(f"a{n}", f"b{n % 7}", float(rng.integers(6))) for n in range(60)]
    vectors = {text: rng.integers(-2, 3, 4).tolist() for a, b, _ in rows for text in (a, b)}
    scores = evaluate(sts(rows), given_vectors(vectors))
    predicted, gold = scores.values["spearman"].T
    assert value(scores, "spearman") == pytest.approx(stats.spearmanr(predicted, gold)[0], abs=1e-12)
    assert value(scores, "pearson") == pytest.approx(stats.pearsonr(predicted, gold)[0], abs=1e-12)


def test_a_constant_similarity_scores_0_and_says_so() -> None:
    scores = evaluate(sts(PAIRS), same)
    assert value(scores, "spearman") == value(scores, "pearson") == 0
    assert scores.notes == ["every pair has the same cosine, 1: a correlation of 0"]


def test_bitext_matches_within_its_pair_and_among_distinct_texts() -> None:
    rows = [
        ("A", "mole", "de"),
        ("B", "owl", "de"),
        ("C", "mole", "de"),
        ("D", "vole", "fr"),
        ("E", "worm", "fr"),
    ]
    vectors = {
        "A": [1.0, 0, 0], "B": [0, 1, 0], "C": [0, 1, 0.1], "D": [1, 0, 0.3], "E": [0, 0.2, 1],
        "mole": [1, 0, 0], "owl": [0, 1, 0], "vole": [0, 0, 1], "worm": [0, 0.1, 1],
    }  # fmt: skip
    scores = evaluate(bitext(rows), given_vectors(vectors))
    assert scores.values["accuracy"].tolist() == [1, 1, 0, 1, 1]  # D: "mole" is nearer, but of another pair
    assert scores.values["f1"].tolist() == [2 / 3, 2 / 3, 2 / 3, 1, 1]
    assert scores.language == ["de", "de", "de", "fr", "fr"]


def test_of_equal_translations_the_one_that_stands_first_is_found() -> None:
    rows = [("A", "mole", ""), ("B", "owl", ""), ("C", "vole", "")]
    assert evaluate(bitext(rows), same).values["accuracy"].tolist() == [1, 0, 0]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
def test_f1_of_bitext_is_weighted_f1(rows: list[tuple[int, int]]) -> None:
    """``found`` is what the vectors make the nearest: a class that may be nobody's right one."""
    sklearn = pytest.importorskip("sklearn.metrics")
    rows = [*rows, *((n, n) for n in range(5))]
    task = bitext([(f"{row}: {found}", f"class {gold}", "") for row, (found, gold) in enumerate(rows)])
    one_hot = np.eye(5, dtype=np.float32)
    scores = evaluate(task, lambda texts, role: one_hot[[int(text[-1]) for text in texts]])
    found, gold = zip(*rows, strict=True)
    assert value(scores, "f1") == pytest.approx(sklearn.f1_score(gold, found, average="weighted"))
    assert value(scores, "accuracy") == pytest.approx(sklearn.accuracy_score(gold, found))


# ---- labels ----------------------------------------------------------------------------------------------


def test_the_linear_probe_learns_within_a_language() -> None:
    """The second language calls the same vectors by the other name."""
    rows = [
        *TEXTS,
        *((f"de {text}", "owl" if label == "mole" else "mole", split) for text, label, split in TEXTS),
    ]
    task = labelled("classification", rows, ["en"] * len(TEXTS) + ["de"] * len(TEXTS))

    def encode(texts: list[str], role: str) -> np.ndarray:
        return np.array([[1, 0] if "mole" in text else [0, 1] for text in texts], np.float32)

    scores = evaluate(task, encode)
    assert value(scores, "accuracy") == 1
    assert set(scores.item) == {str(n) for n, (*_, split) in enumerate(rows) if split == "test"}
    assert scores.language == ["en"] * 18 + ["de"] * 18


def test_only_texts_that_are_drawn_or_tested_are_embedded() -> None:
    rows = [(f"{word} {n}", word, "train") for word in ("mole", "owl") for n in range(500)]
    asked: list[str] = []

    def encode(texts: list[str], role: str) -> np.ndarray:
        asked.extend(texts)
        return letters(texts)

    evaluate(labelled("classification", [*rows, ("moles", "mole", "test")]), encode)
    assert len(asked) == len(set(asked)) <= 2 * SAMPLES * REPEATS + 1
    assert "moles" in asked


def test_accuracy_is_the_share_of_probes_that_are_right() -> None:
    rng = np.random.default_rng(0)
    rows = [(f"{n}", "ab"[n % 2], "train" if n < 60 else "test") for n in range(100)]
    noise = {text: rng.normal(size=8) + (label == "a") * 0.5 for text, label, _ in rows}
    scores = evaluate(
        labelled("classification", rows), lambda texts, role: np.stack([noise[t] for t in texts])
    )
    shares = scores.values["accuracy"] * REPEATS
    np.testing.assert_allclose(shares, shares.round())
    assert 0 < shares.mean() / REPEATS < 1
    assert len(set(shares.tolist())) > 2


def test_clusters_that_are_the_labels_have_v_measure_1() -> None:
    task = labelled("clustering", [(text, label, "") for text, label, _ in TEXTS])
    assert value(evaluate(task, letters), "v_measure") > 0

    def encode(texts: list[str], role: str) -> np.ndarray:
        return np.array([[1, 0] if "mole" in text else [0, 1] for text in texts], np.float32)

    scores = evaluate(task, encode)
    assert value(scores, "v_measure") == pytest.approx(1)
    assert value(evaluate(task, same), "v_measure") == pytest.approx(0)


def test_v_measure_is_that_of_sklearn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    rows = [(str(n), str(n % 5), "") for n in range(200)]
    vectors = {text: rng.normal(size=4) + int(label) for text, label, _ in rows}
    scores = evaluate(labelled("clustering", rows), lambda texts, role: np.stack([vectors[t] for t in texts]))
    found, gold = scores.values["v_measure"].T
    assert len(np.unique(found)) == 5
    assert value(scores, "v_measure") == pytest.approx(sklearn.v_measure_score(gold, found), abs=1e-12)


@pytest.mark.parametrize("task", ALL[5:], ids=lambda task: task.kind)
def test_a_missing_library_names_the_extra(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sklearn", "sklearn.cluster", "sklearn.linear_model"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"pip install 'moembed\[eval\]'"):
        evaluate(task, letters)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=2, max_size=40))
def test_average_precision_is_that_of_sklearn(rows: list[tuple[int, bool, int]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    score_Q, label_Q, weight_Q = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    if not label_Q.any():
        return
    pair_Q2 = np.stack([score_Q, label_Q], axis=1)
    assert np.isclose(statistic("ap")(pair_Q2), metrics.average_precision_score(label_Q, score_Q))
    if (label_Q * weight_Q).any():  # a draw that holds items several times is a set with repeated items
        drawn = np.repeat(np.arange(len(rows)), weight_Q.astype(int))
        found = statistic("ap").resampled(score_Q[None], label_Q, weight_Q[:, None])[0, 0]
        assert np.isclose(found, metrics.average_precision_score(label_Q[drawn], score_Q[drawn]))


def test_pair_classification_ranks_pairs_by_cosine() -> None:
    texts = ["a", "b", "c", "d"]
    vectors = dict(zip(texts, np.array([[1, 0], [1, 0.1], [0, 1], [1, 1]]), strict=True))
    task = PairTask(
        "some", "pair_classification", ["a", "a", "a"], ["b", "c", "d"], np.array([0.0, 0, 1]), [""] * 3, []
    )
    scores = evaluate(task, lambda some, role: np.array([vectors[text] for text in some]))
    assert statistic("ap")(scores.values["ap"]) == 0.5
