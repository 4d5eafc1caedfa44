"""A sample keeps what decides a score, is the same every time, and ranks as the whole task does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moembed.compare.scores import Scores
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.metrics import Qrels, evaluate_ranking
from moembed.evaluation.sample import agreement, kendall, rank_correlation, sample
from moembed.search.exact import top_k
from moembed.types import UserError

QUERIES, DOCUMENTS, WORDS = 60, 2000, 300


@pytest.fixture(scope="module")
def task() -> RetrievalTask:
    """Every query has words of two answers and one other; a few judgements say "not relevant"."""
    rng = np.random.default_rng(0)
    topics = rng.integers(WORDS, size=(DOCUMENTS, 6))
    answer_QA = np.stack([rng.choice(DOCUMENTS, 3, replace=False) for _ in range(QUERIES)])
    queries = [
        f"w{topics[row[0]][0]} w{topics[row[0]][1]} w{topics[row[1]][0]} w{rng.integers(WORDS)}"
        for row in answer_QA
    ]
    grade_QA = rng.integers(0, 3, size=answer_QA.shape)
    grade_QA[:, 0] = 1
    rows = np.repeat(np.arange(QUERIES), 3)
    return RetrievalTask(
        name="made",
        queries=queries,
        documents=[" ".join(f"w{word}" for word in words) for words in topics],
        qrels=Qrels.from_judgements(rows, answer_QA.ravel(), grade_QA.ravel(), QUERIES),
        query_ids=[f"q{i}" for i in range(QUERIES)],
        document_ids=[f"d{i}" for i in range(DOCUMENTS)],
        notes=["made for a test"],
        language={f"q{i}": "en" for i in range(0, QUERIES, 2)},
    )


def judged(task: RetrievalTask) -> dict[tuple[str, str], float]:
    """What is judged, by the texts themselves: rows that were mixed up would show."""
    return {
        (f"{task.query_ids[q]} {task.queries[q]}", f"{task.document_ids[d]} {task.documents[d]}"): grade
        for q, d, grade in zip(task.qrels.query_R, task.qrels.document, task.qrels.grade, strict=True)
    }


@given(
    queries=st.integers(1, QUERIES), hard=st.integers(0, 20), more=st.integers(0, 300), seed=st.integers(0, 9)
)
def test_a_sample_keeps_all_relevant_documents_of_its_queries(
    task: RetrievalTask, queries: int, hard: int, more: int, seed: int
) -> None:
    rankings = [np.random.default_rng(1).integers(-1, DOCUMENTS, size=(QUERIES, 20))]
    found = sample(task, queries, hard, seed, rankings, documents=more)
    assert len(found.queries) == len(found.qrels) == queries
    assert len(set(found.document_ids)) == len(found.documents) >= more
    kept = {key: grade for key, grade in judged(found).items() if grade > 0}
    whole = judged(task)
    names = {query.split()[0] for query, _ in kept}
    assert names == set(found.query_ids)
    assert kept == {key: g for key, g in whole.items() if g > 0 and key[0].split()[0] in names}
    assert judged(found).items() <= whole.items()
    hard_ones = {f"d{d}" for q in found.query_ids for d in rankings[0][int(q[1:]), :hard] if d >= 0}
    assert hard_ones <= set(found.document_ids)
    if not more:
        assert len(found.documents) == len(hard_ones | {d.split()[0] for _, d in kept})
    assert found.language == {q: "en" for q in found.query_ids if int(q[1:]) % 2 == 0}
    if len(found.documents) < DOCUMENTS or queries < QUERIES:
        assert found.notes[0] == "made for a test"
        assert f"{queries} of 60 queries and {len(found.documents)} of 2000 documents" in found.notes[1]


def test_a_seed_is_a_sample_and_fewer_queries_are_among_the_more(task: RetrievalTask) -> None:
    few, more = sample(task, 10, hard=5, seed=3), sample(task, 30, hard=5, seed=3)
    assert few == replace(sample(task, 10, hard=5, seed=3), qrels=few.qrels)
    assert judged(few) == judged(sample(task, 10, hard=5, seed=3))
    assert set(few.query_ids) < set(more.query_ids)
    assert few.query_ids != sample(task, 10, hard=5, seed=4).query_ids


def test_the_whole_task_is_a_sample_of_itself(task: RetrievalTask) -> None:
    assert sample(task, QUERIES, hard=DOCUMENTS) is task
    assert sample(task, QUERIES + 9, hard=DOCUMENTS + 9) is task
    assert sample(task, QUERIES, hard=0, documents=DOCUMENTS) is task
    everything = [np.tile(np.arange(DOCUMENTS), (QUERIES, 1))]
    assert sample(task, QUERIES, hard=DOCUMENTS, rankings=everything) is task


def test_bm25_says_what_is_hard(task: RetrievalTask) -> None:
    found = sample(task, 20, hard=10)
    words = set(found.queries[0].split())
    sharing = [
        d for d, text in zip(task.document_ids, task.documents, strict=True) if words & set(text.split())
    ]
    kept = set(sharing) & set(found.document_ids)
    assert len(kept) >= min(10, len(sharing))


def systems(task: RetrievalTask) -> dict[str, Scores]:
    """Systems that see bags of words through more and more noise."""

    def bag(texts: list[str]) -> np.ndarray:
        table = np.zeros((len(texts), WORDS), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                table[row, int(word[1:])] += 1
        return table

    found = {}
    for number, noise in enumerate((0.0, 0.02, 0.04, 0.08, 0.16)):
        mix = np.eye(WORDS) + noise * np.random.default_rng(number).normal(size=(WORDS, WORDS))
        ranked_QK = top_k(bag(task.queries) @ mix, bag(task.documents) @ mix, 10).index
        value_Q = evaluate_ranking(ranked_QK, task.qrels, ["ndcg@10"])["ndcg@10"]
        length = np.array([len(query) for query in task.queries])
        languages = [""] * len(task.queries)
        found[f"noise {noise}"] = Scores(
            task.name, "retrieval", task.query_ids, languages, length, {"ndcg@10": value_Q}
        )
    return found


def test_a_small_sample_ranks_queries_and_systems_as_the_whole_task(task: RetrievalTask) -> None:
    """And better than as many documents that are there by chance."""
    small = sample(task, 40, hard=20)
    assert len(small.documents) < DOCUMENTS / 3
    chance = sample(task, 40, hard=0, documents=len(small.documents))
    whole = systems(task)
    found, by_chance = (agreement(whole, systems(some), "ndcg@10") for some in (small, chance))
    assert found.queries.keys() == whole.keys()
    assert min(found.queries.values()) > 0.9 > max(by_chance.queries.values())
    assert found.systems is not None
    assert found.systems > 0.75
    assert str(found).startswith("rank correlation with the whole task: of queries (Spearman) noise 0.0 ")
    assert str(found).endswith(f"of systems (Kendall) {found.systems:.3f}")
    two = {name: whole[name] for name in list(whole)[:2]}
    assert agreement(two, two, "ndcg@10").systems is None
    assert agreement(two, two, "ndcg@10").queries == pytest.approx(dict.fromkeys(two, 1))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_the_correlations_are_those_of_scipy(pairs: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    full, sampled = map(np.array, zip(*pairs, strict=True))
    if len(set(full)) == 1 or len(set(sampled)) == 1:
        assert kendall(full, sampled) == rank_correlation(full, sampled) == 0
    else:
        assert kendall(full, sampled) == pytest.approx(stats.kendalltau(full, sampled).statistic)
        assert rank_correlation(full, sampled) == pytest.approx(stats.spearmanr(full, sampled).statistic)


def test_what_does_not_fit_is_refused(task: RetrievalTask) -> None:
    with pytest.raises(UserError, match="at least 1 query and 0 hard documents, not 0 and 5"):
        sample(task, 0, hard=5)
    for ranking in (
        np.zeros((3, 5), dtype=int),
        np.full((QUERIES, 5), DOCUMENTS),
        np.zeros(QUERIES, dtype=int),
    ):
        with pytest.raises(UserError, match="does not fit the 60 queries and 2000 documents of made"):
            sample(task, 5, rankings=[ranking])
    scores = next(iter(systems(task).values()))
    foreign = replace(scores, item=["elsewhere", *scores.item[1:]])
    with pytest.raises(UserError, match="the query 'elsewhere' of the sample is not in the whole task"):
        agreement({"a": scores}, {"a": foreign}, "ndcg@10")
