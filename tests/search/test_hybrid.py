"""Filtered and hybrid search against plain reckoning: bm25s and cosines of the rows that are left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ToyModel, write_jsonl

from moembed.evaluation.bm25 import bm25_scores
from moembed.search.bm25 import Bm25, Postings
from moembed.search.embed import EmbedConfig
from moembed.search.exact import top_k
from moembed.search.index import Hit, Index
from moembed.search.index_file import delete_rows, index_file
from moembed.search.terms import tokenize
from moembed.types import UserError

WORDS = ["owl", "mole", "digs", "hunts", "at", "night", "東京都", "parse_csv"]
texts_ = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)


@settings(deadline=None)
@given(st.lists(texts_, min_size=1, max_size=8), st.lists(texts_, max_size=8), st.data())
def test_bm25_over_parts_is_bm25_of_the_rows_that_are_left(first, second, data):
    live = [
        np.array(sorted(data.draw(st.sets(st.sampled_from(range(len(part)))))) if part else [], np.int64)
        for part in (first, second)
    ]
    left = [part[row] for part, row_K in zip((first, second), live, strict=True) for row in row_K]
    engine = Bm25([Postings.of(first), Postings.of(second)], live)
    queries = ["owl owl hunts", "mole digs at night", "東京", "csv nothing", ""]
    for query, expected in zip(queries, bm25_scores(queries, left), strict=True):
        np.testing.assert_allclose(engine.scores(query), expected, rtol=1e-5, atol=1e-6)


@given(st.text(st.characters(codec="ascii")))
def test_words_of_ascii_are_those_of_any_text(text):
    assert [*tokenize(text), "où"] == tokenize(text + " où")


def test_postings_come_back_from_the_disk(tmp_path):
    postings = Postings.of(["an owl", "", "owl owl"])
    postings.save(tmp_path / "part.terms.npz", "")
    again = Postings.load(tmp_path / "part.terms.npz")
    for name in Postings.__slots__:
        np.testing.assert_array_equal(getattr(again, name), getattr(postings, name))


DIM = 8
DOCS = [
    {
        "id": number,
        "text": f"{WORDS[number % 5]} {WORDS[number % 3]} n{number}",
        "lang": ["de", "en", None][number % 3],
        "year": 2000 + number,
    }
    for number in range(60)
]


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    """60 rows in parts of 7, three of them deleted."""
    folder = tmp_path_factory.mktemp("hybrid")
    source = write_jsonl(folder / "docs.jsonl", DOCS)
    index_file(ToyModel(dim=DIM), source, folder / "i", EmbedConfig(block_rows=7))
    delete_rows(folder / "i", ["3", "4", "30"])
    return Index.open(folder / "i")


def left(keep=lambda row: True) -> list[dict]:
    return [row for row in DOCS if row["id"] not in (3, 4, 30) and keep(row)]


def queries(count: int = 4) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, DIM), np.float32)


@pytest.mark.parametrize(
    ("where", "keep"),
    [
        (None, lambda row: True),
        ('lang = "de" and year >= 2010', lambda row: row["lang"] == "de" and row["year"] >= 2010),
        ("year in (2005, 2004)", lambda row: row["year"] == 2005),
        ("not lang = 'de'", lambda row: row["lang"] != "de"),
        ("year < 0", lambda row: False),
    ],
)
@pytest.mark.parametrize("k", [1, 5, 100])
def test_a_filter_before_the_search_loses_nothing_and_lets_nothing_through(index, where, keep, k):
    rows = left(keep)
    vector_NM = ToyModel(dim=DIM).vectors([row["text"] for row in rows], prompt="").array.reshape(-1, DIM)
    expected = top_k(queries(), vector_NM, k)
    hits = index.search(queries(), k, where=where)
    assert hits.index.shape == (4, min(k, len(rows)))
    np.testing.assert_array_equal(hits.score, expected.score)
    for query in range(4):
        assert [hit.row for hit in hits[query]] == [rows[row] for row in expected.index[query]]
        assert index.rows(hits.index[query]) == [hit.row for hit in hits[query]]


@pytest.mark.parametrize("where", [None, 'lang = "en" or lang = null'])
def test_ranks_are_added_over_both_rankings(index, where):
    keep = (lambda row: row["lang"] != "de") if where else (lambda row: True)
    everything, rows = left(), left(keep)
    query_QM = queries(3)
    texts = ["owl at night", "mole n8 n11", "nothing of that"]
    vector_NM = ToyModel(dim=DIM).vectors([row["text"] for row in rows], prompt="").array
    nearest = top_k(query_QM, vector_NM, len(rows)).index
    found = index.find(query_QM, texts=texts, k=6, where=where, hybrid=True)
    all_scores = bm25_scores(texts, [row["text"] for row in everything])
    for query, terms in enumerate(all_scores):
        term = {row["id"]: score for row, score in zip(everything, terms, strict=True)}
        scores = {rows[row]["id"]: 1 / (61 + rank) for rank, row in enumerate(nearest[query])}
        lexical = sorted((row["id"] for row in rows if term[row["id"]] > 1e-9), key=lambda n: (-term[n], n))
        for rank, number in enumerate(lexical):
            scores[number] += 1 / (61 + rank)
        best = sorted(scores, key=lambda number: (-round(scores[number], 12), number))[:6]
        assert [hit.id for hit in found[query]] == [str(number) for number in best]
        np.testing.assert_allclose([hit.score for hit in found[query]], [scores[n] for n in best], rtol=1e-6)


def test_weights_go_from_the_words_alone_to_the_vectors_alone(index):
    query_QM, texts = queries(2), ["owl at night", "mole n8"]
    by_vectors = index.search(query_QM, 5)
    found = index.find(query_QM, texts=texts, k=5, hybrid=True, weight=1.0)
    assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in by_vectors]
    terms = list(bm25_scores(texts, [row["text"] for row in left()]))
    for query, hits in enumerate(index.find(query_QM, texts=texts, k=5, hybrid=True, weight=0.0)):
        expected = np.sort(terms[query])[::-1][:5] / terms[query].max()
        np.testing.assert_allclose([hit.score for hit in hits], expected, rtol=1e-5)
    (half,) = index.find(query_QM[:1], texts=texts[:1], k=60, hybrid=True, weight=0.5)
    for hit in half:
        row = [row["id"] for row in left()].index(int(hit.id))
        vector = ToyModel(dim=DIM).vectors([DOCS[int(hit.id)]["text"]], prompt="").array
        cosine = top_k(query_QM[:1], vector, 1).score[0, 0]
        assert hit.score == pytest.approx((cosine + terms[0][row] / terms[0].max()) / 2, abs=1e-6)


class _Roles(ToyModel):
    """As a loaded model is: the prompt follows from the role."""

    def space(self, **more):
        return super().space(prompt="", view=more["view"])

    def vectors(self, texts, **more):
        return super().vectors(texts, prompt="", view=more["view"])


def test_texts_are_embedded_by_the_model(index):
    hits = index.search(["owl digs", DOCS[7]["text"]], 3, model=_Roles(dim=DIM))
    assert hits[1][0] == Hit("7", pytest.approx(1.0), DOCS[7])
    assert len(hits) == 2
    assert [hit.id for hit in index.search(DOCS[8]["text"], 1, model=_Roles(dim=DIM))[0]] == ["8"]
    column = np.array([DOCS[8]["text"], DOCS[7]["text"]])
    assert [hits[0].id for hits in index.search(column, 1, model=_Roles(dim=DIM))] == ["8", "7"]
    by_both = index.search([DOCS[8]["text"]], 3, model=_Roles(dim=DIM), hybrid=True, where="year > 2001")
    assert by_both[0][0].id == "8"
    with pytest.raises(UserError, match="this model makes other--8: re-index"):
        index.search(["owl"], model=_Roles(dim=DIM, name="other"))
    with pytest.raises(UserError, match="does not say which model made it"):
        index.search(["owl"])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"k": 0}, "k must be a whole number of at least 1, not 0"),
        ({"k": 2.5}, "k must be a whole number of at least 1, not 2.5"),
        ({"k": True}, "k must be a whole number of at least 1, not True"),
        ({"hybrid": True}, "hybrid search needs the text of every query"),
        ({"hybrid": True, "texts": ["a"]}, "hybrid search needs the text of every query"),
        ({"hybrid": True, "texts": ["a"] * 4, "weight": 2}, "between 0 and 1"),
        ({"weight": 0.5}, "weight is of hybrid search alone"),
        ({"where": "yaer = 1"}, "did you mean 'year'"),
    ],
)
def test_questions_that_make_no_sense(index, options, complaint):
    with pytest.raises(UserError, match=complaint):
        index.find(queries(), **options)
    with pytest.raises(UserError, match="needs the texts of the queries"):
        index.search(queries(), hybrid=True)


def test_a_single_vector_is_one_query(index):
    query_M = queries()[1]
    assert list(index.search(query_M, 3)) == list(index.search(query_M[None], 3))


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"owl", "mole"}, "a set has no order, so no vector could be told whose it is: pass a list"),
        (pa.table({"q": ["owl"]}), "a Table is a table, not a list of texts: pass one column"),
        (None, "texts must be a list of strings, not a NoneType"),
        ([3], "text 0 is a int, not a string"),
    ],
)
def test_queries_that_are_no_texts_are_refused(index, asked, complaint):
    with pytest.raises(UserError, match=complaint):
        index.search(asked, model=_Roles(dim=DIM))


def test_an_index_without_texts_has_no_hybrid_search(tmp_path: Path):
    from moembed.search.index_writer import write_index

    index = write_index(tmp_path / "i", queries(2), [{"a": 1}, {"a": 2}], space_id="s")
    assert len(set(index.ids())) == 2
    with pytest.raises(UserError, match="does not say its column"):
        index.find(queries(1), texts=["a"], hybrid=True)
