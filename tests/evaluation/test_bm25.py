from __future__ import annotations

import math
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moembed.evaluation.bm25 import bm25_scores, bm25_search
from moembed.search.terms import tokenize
from moembed.types import UserError

words = st.lists(st.sampled_from(["red", "green", "blue", "mole", "vole"]), max_size=6).map(" ".join)


def slow_scores(query: str, documents: list[str], k1: float, b: float) -> list[float]:
    """BM25 straight from the formula."""
    terms = [Counter(tokenize(document)) for document in documents]
    length = [sum(counts.values()) for counts in terms]
    mean_length = sum(length) / len(documents)
    scores = [0.0] * len(documents)
    for term in tokenize(query):
        df = sum(term in counts for counts in terms)
        idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
        for row, counts in enumerate(terms):
            if tf := counts[term]:
                scores[row] += idf * tf / (tf + k1 * (1 - b + b * length[row] / mean_length))
    return scores


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Où est-il, 42?", "où est il 42"),
        ("Straße ﬁne ＡＢＣ", "strasse fine abc"),
        ("e\u0301te\u0301", "été"),
        ("parseHTTP_v2", "parsehttp_v2 parse http v2"),
        ("__init__(self)", "init self"),
        ("getUserName HTTPServer", "getusername get user name httpserver http server"),
        ("हिन्दी में किताब", "हिन्दी में किताब"),
        ("தமிழ்", "தமிழ்"),
        ("می\u200cخواهم", "میخواهم"),
        ("co\u00adoperate", "cooperate"),
        ("東京都は", "東京 京都 都は"),
        ("東京、大阪。木", "東京 大阪 木"),
        ("Python入門", "python 入門"),
        ("서울에서 왔다", "서울 울에 에서 왔다"),
        ("ที่นี่", "ที่นี่"),
        ("", ""),
        ("?! _ __", ""),
    ],
)
def test_tokenize(text: str, terms: str) -> None:
    assert tokenize(text) == terms.split()


@settings(deadline=None)
@given(st.text(max_size=40))
def test_no_text_has_empty_terms_or_terms_with_blanks(text: str) -> None:
    for term in tokenize(text):
        assert term
        assert not any(char.isspace() for char in term)


@settings(max_examples=40, deadline=None)
@given(st.lists(words, min_size=1, max_size=8), st.lists(words, min_size=1, max_size=4), st.integers(1, 10))
def test_agrees_with_the_formula_and_breaks_ties_by_row(
    documents: list[str], queries: list[str], k: int
) -> None:
    hits = bm25_search(queries, documents, k, k1=1.5, b=0.6)
    assert hits.index.dtype == np.int64
    assert hits.score.dtype == np.float32
    assert hits.index.shape == hits.score.shape == (len(queries), min(k, len(documents)))
    for query, index, score in zip(queries, hits.index, hits.score, strict=True):
        expected = np.array(slow_scores(query, documents, k1=1.5, b=0.6))
        np.testing.assert_allclose(score, expected[index], rtol=1e-5)
        np.testing.assert_allclose(score, np.sort(expected)[::-1][: len(score)], rtol=1e-5)
        tied = np.diff(score) == 0
        assert (np.diff(index)[tied] > 0).all()


def test_ties_at_the_cut_go_to_the_lower_row() -> None:
    hits = bm25_search(["mole"], ["vole", "mole", "red", "mole", "mole"], 2)
    assert hits.index.tolist() == [[1, 3]]


@pytest.mark.parametrize("query", ["", "?!", "unheard"])
def test_queries_without_a_known_term_find_the_first_rows(query: str) -> None:
    hits = bm25_search(["mole", query], ["vole", "mole", "red"], 2)
    assert hits.index.tolist() == [[1, 0], [0, 1]]
    assert hits.score[1].tolist() == [0, 0]


def test_scores_are_those_of_all_documents_for_every_query() -> None:
    documents = ["red mole", "blue vole", "mole mole"]
    for query, score_N in zip(("mole", "?!"), bm25_scores(["mole", "?!"], documents), strict=True):
        assert score_N.dtype == np.float32
        np.testing.assert_allclose(score_N, slow_scores(query, documents, k1=1.2, b=0.75), rtol=1e-5)


def test_a_corpus_without_terms_and_no_queries() -> None:
    assert bm25_search(["mole"], ["", "..."], 5).index.tolist() == [[0, 1]]
    assert bm25_search([], ["mole"], 5).index.shape == (0, 1)


def test_parts_of_identifiers_find_code() -> None:
    code = ["def read_file(path): ...", "class HttpServer: ...", "def parseQueryString(text): ..."]
    assert bm25_search(["parse a query string", "http server", "readFile"], code, 1).index.tolist() == [
        [2],
        [1],
        [0],
    ]


def test_no_progress_bars(capfd: pytest.CaptureFixture[str]) -> None:
    bm25_search(["mole"], ["mole", "vole"], 1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("documents", "k"), [([], 3), (["mole"], 0)])
def test_nothing_to_search_is_refused(documents: list[str], k: int) -> None:
    with pytest.raises(UserError, match="BM25 needs documents"):
        bm25_search(["mole"], documents, k)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(UserError, match=r"pip install 'moembed\[eval\]'"):
        bm25_search(["mole"], ["mole"], 1)
