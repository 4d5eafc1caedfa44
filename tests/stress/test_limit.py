from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moembed.evaluation.beir import RetrievalTask, load_task, save_task
from moembed.evaluation.metrics import evaluate_ranking
from moembed.search.terms import tokenize
from moembed.stress.limit import chance, limit_task, measure
from moembed.stress.subject import Subject
from moembed.stress.texts import FIRST_NAMES, LAST_NAMES, THINGS
from moembed.types import UserError


def pairs(task: RetrievalTask) -> list[tuple[int, ...]]:
    assert (np.diff(task.qrels.offset) == 2).all()
    return [tuple(sorted(pair)) for pair in task.qrels.document.reshape(-1, 2).tolist()]


@settings(max_examples=25)
@given(st.integers(3, 60), st.integers(1, 1000), st.integers(0, 2**32))
def test_exactly_the_two_people_of_a_pair_like_what_is_asked_for(
    documents: int, queries: int, seed: int
) -> None:
    task = limit_task(documents, queries, seed)
    found = pairs(task)
    assert len(found) == min(queries, documents * (documents - 1) // 2)
    assert len(set(found)) == len(found)
    assert len(set(task.document_ids)) == documents
    words = [set(re.findall(r"\w+", text)) for text in task.documents]
    for query, pair in zip(task.queries, found, strict=True):
        thing = query.removeprefix("Who likes ").removesuffix("?")
        assert [row for row in range(documents) if thing in words[row]] == list(pair)


def test_every_pair_is_asked_for_where_there_are_queries_enough() -> None:
    assert set(pairs(limit_task(12, 1000))) == set(combinations(range(12), 2))


def test_the_seed_decides() -> None:
    assert limit_task(8, seed=1).documents == limit_task(8, seed=1).documents
    assert limit_task(8, seed=1).documents != limit_task(8, seed=2).documents


def test_things_and_names_cannot_be_confused() -> None:
    terms = [tokenize(thing) for thing in THINGS]
    assert all(len(term) == 1 for term in terms)
    assert len({term[0] for term in terms}) == len(terms) >= 1035
    assert len(set(FIRST_NAMES)) == len(FIRST_NAMES)
    assert len(set(LAST_NAMES)) == len(LAST_NAMES)
    names = {name.casefold() for name in (*FIRST_NAMES, *LAST_NAMES)}
    assert names.isdisjoint(THINGS)


@pytest.mark.parametrize(
    ("documents", "queries", "complaint"),
    [(2, 10, "3 to .* people, not 2"), (9999, 10, "not 9999"), (46, 0, "not 0"), (99, 4000, "not 4000")],
)
def test_refuses_what_cannot_be_made(documents: int, queries: int, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        limit_task(documents, queries)


def test_a_saved_instance_reads_back(tmp_path: Path) -> None:
    task = limit_task(7)
    save_task(task, tmp_path / "mine")
    read = load_task(tmp_path / "mine")
    assert (read.queries, read.documents) == (task.queries, task.documents)
    assert pairs(read) == pairs(task)


def test_words_alone_solve_it() -> None:
    found = measure(Subject("bm25", None), limit_task())
    assert {name: cell.value for name, cell in found.metrics.items()} == {
        "recall@2": 1.0,
        "recall@10": 1.0,
        "recall@20": 1.0,
    }
    assert found.truncated == 0


def test_chance_is_what_random_orders_score() -> None:
    task = limit_task()
    rng = np.random.default_rng(0)
    ranked_QK = rng.permuted(np.tile(np.arange(46), (len(task.queries), 1)), axis=1)
    expected = chance(task)
    for name, score_Q in evaluate_ranking(ranked_QK, task.qrels, list(expected)).items():
        assert score_Q.mean() == pytest.approx(expected[name], abs=0.04)
