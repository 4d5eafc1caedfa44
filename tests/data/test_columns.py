"""Columns not used are told, side columns of negatives are no texts, lists written as text are lists."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moembed.data.columns import is_number, negative_column, written_list
from moembed.data.dedup import dedup_file
from moembed.data.layouts import plain_rows
from moembed.data.sources import SourceConfig, load_corpus, load_source
from moembed.types import Pair, UserError


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def load(path, **options):
    return load_source(SourceConfig(path=str(path), **options))


@pytest.fixture(params=["a.jsonl", "a.parquet", "a.csv"])
def any_path(request, tmp_path):
    return tmp_path / request.param


# ---- negatives ----


@pytest.mark.parametrize("name", ["negative", "negatives", "negative_1", "negative2", "negative-3"])
def test_plain_names_of_negatives_hold_texts(name):
    assert negative_column(name, "negative") == "texts"


@pytest.mark.parametrize(
    "name",
    ["negative_score", "negative_scores", "negative_id", "negatives_ids", "negative_1_score", "negativeScore",
     "negative_score_2", "negative_title", "negatively", "positive", "negative_docid"],
)  # fmt: skip
def test_side_columns_hold_no_negatives(name):
    assert negative_column(name, "negative") is None


def test_side_columns_of_negatives_are_no_texts(any_path):
    rows = [
        {"query": "q", "document": "d", "negative": "x", "negative_score": 0.7, "negative_id": "doc17",
         "negative_margin": 0.5, "negative_passage": "y", "negative_rating": 3},
    ]  # fmt: skip
    source = load(write(any_path, rows))
    assert list(source) == [Pair("q", "d", ("x", "y"))]
    unused = "negative_score, negative_id, negative_margin, negative_rating"
    assert [note for note in source.notes if unused in note]


def test_a_number_in_a_column_of_negatives_is_refused(tmp_path):
    for name in ("negative", "negative_2"):
        rows = [{"query": "q", "document": "d", name: 0.5}]
        with pytest.raises(UserError, match=f"column {name!r} is of type float"):
            load(write(tmp_path / "a.jsonl", rows))


# ---- lists written as text ----

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4)


@given(TEXTS)
def test_what_python_and_json_write_is_read_back(texts):
    assert written_list(json.dumps(texts)) == texts
    assert written_list(repr(texts)) == texts


@pytest.mark.parametrize("texts", [["a", "b c", "it's", 'say "x"'], ["x" * 200, "y" * 200]])
def test_what_numpy_writes_is_read_back(texts):
    assert written_list(str(np.array(texts, dtype=object))) == texts


def test_other_texts_are_no_lists():
    assert written_list("[a, b]") is None
    assert written_list("['a'] is a list of Python") is None
    assert written_list("[]") == []
    assert written_list("['a', None]") == ["a", None]
    for broken in ("['a', 3]", "['a' + 'b']", "['a', ...]", '["a", {"b": 1}]'):
        with pytest.raises(ValueError, match="looks like a list written as text"):
            written_list(broken)


def test_is_number():
    assert all(map(is_number, [1, 0.5, "0.71", "-3", "1e-4", [1, 2.0]]))
    assert not any(map(is_number, [None, "", "one", "1a", [], ["a"], [1, "a"]]))


@pytest.mark.parametrize("cell", ["['x', 'y']", '["x", "y"]', "['x' 'y']"])
def test_a_list_of_negatives_written_as_text_is_a_list(any_path, cell):
    rows = [{"query": "q", "document": "d", "negative": cell}]
    assert list(load(write(any_path, rows))) == [Pair("q", "d", ("x", "y"))]


def test_a_list_of_positives_written_as_text_is_bge(tmp_path):
    rows = [{"query": "q", "pos": "['a', 'b']", "neg": '["x"]'}]
    assert list(load(write(tmp_path / "a.csv", rows))) == [Pair("q", "a", ("x",)), Pair("q", "b", ("x",))]


def test_a_list_that_cannot_be_read_is_refused_with_its_column(tmp_path):
    rows = [{"query": "q", "document": "d", "negative": "['x', ...]"}]
    with pytest.raises(UserError, match="line 1: column 'negative' looks like a list written as text, but"):
        load(write(tmp_path / "a.jsonl", rows))


def test_documents_that_look_like_lists_are_told(tmp_path):
    rows = [{"query": "q", "document": "['a', 'b']"}, {"query": "q", "document": "c"}]
    source = load(write(tmp_path / "a.jsonl", rows))
    assert source.notes == (
        "1 texts of the column document look like lists written as text and count as one",
    )


# ---- what is not used ----


def test_columns_that_are_not_used_are_told(any_path):
    rows = [{"query": "q", "document": "d", "score": 1.0, "title": "T", "url": "u", "language": "en"}]
    [note] = load(write(any_path, rows)).notes
    assert note.startswith("columns not used: score, title, url (")
    assert "every row counts as a positive pair, whatever its score" in note
    assert "title: title puts it in front of the document" in note


def test_nothing_is_told_where_all_is_used(any_path):
    rows = [{"query": "q", "document": "d", "negative": "n", "language": "en", "source": "s"}]
    assert load(write(any_path, rows)).notes == ()


def test_notes_outlive_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("moembed.data.cache.IN_MEMORY_BYTES", 0)
    path = write(tmp_path / "a.jsonl", [{"query": "q", "document": "d", "score": 1.0}])
    first, again = load(path), load(path)
    assert first.notes == again.notes != ()


def test_a_title_and_a_prompt_are_put_in_front_when_asked(any_path):
    rows = [{"query": "q", "document": "d", "title": "T", "prompt": "find: "}]
    rows += [{"query": "r", "document": "e", "title": "", "prompt": None}]
    source = load(write(any_path, rows), title="title", prompt="prompt")
    assert list(source) == [Pair("find: q", "T d"), Pair("r", "e")]
    assert source.notes == ()
    with pytest.raises(UserError, match="there is no column 'headline'"):
        load(any_path, title="headline")


def test_bge_rows_tell_of_their_prompt(tmp_path):
    rows = [
        {"query": "q", "pos": ["a"], "neg": ["x"], "pos_scores": [1], "prompt": "find: ", "type": "normal"}
    ]
    [note] = load(write(tmp_path / "a.jsonl", rows)).notes
    assert note.startswith("columns not used: pos_scores, prompt, type (")
    assert list(load(tmp_path / "a.jsonl", prompt="prompt")) == [Pair("find: q", "a", ("x",))]


def test_tsv_that_was_written_with_quotes_is_told(tmp_path):
    (tmp_path / "a.tsv").write_text('query\tdocument\n"where?"\tmoles "dig"\n"who?"\tmoles\n')
    [note] = load(tmp_path / "a.tsv").notes
    assert note.startswith("2 of 2 fields of the column query stand in quotes")
    (tmp_path / "a.tsv").write_text('query\tdocument\nwhere "do" moles live?\tthere\n"quoted"\tx\nc\td\n')
    assert load(tmp_path / "a.tsv").notes == ()


# ---- a corpus ----


def test_a_corpus_reads_titles_as_beir_does(any_path):
    rows = [{"_id": "1", "title": "Moles", "text": "dig"}, {"_id": "2", "title": "", "text": "owls hunt"}]
    corpus = load_corpus(SourceConfig(path=str(write(any_path, rows)), document="text"))
    assert [pair.document for pair in corpus] == ["Moles dig", "owls hunt"]
    assert corpus.notes == ()


# ---- dedup reads what training reads ----


def test_dedup_takes_repeated_positives_out_of_bge_rows(tmp_path):
    rows = [
        {"query": "q", "pos": ["a", "b"], "neg": ["x"], "pos_scores": [1, 2]},
        {"query": "Q", "pos": ["A", "c"], "neg": ["y"], "pos_scores": [3, 4]},
        {"query": "q", "pos": ["b"], "neg": []},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    done = dedup_file(SourceConfig(path=str(path)), tmp_path / "b.jsonl")
    assert (done.rows, done.kept, done.exact) == (3, 2, 2)
    expected = {"query": "Q", "pos": ["c"], "neg": ["y"], "pos_scores": [4]}
    assert list(plain_rows(tmp_path / "b.jsonl")) == [rows[0], expected]
    assert len(load(tmp_path / "b.jsonl")) == 3
    by_query = dedup_file(SourceConfig(path=str(path)), tmp_path / "c.jsonl", by="query")
    assert list(plain_rows(tmp_path / "c.jsonl")) == rows[:1]
    assert by_query.kept == 1


def test_dedup_skips_bad_rows_when_asked_and_refuses_an_empty_file(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"query": "q", "document": "d"}, {"query": "q", "document": ""}])
    done = dedup_file(SourceConfig(path=str(path), bad_rows="skip"), tmp_path / "b.jsonl")
    assert (done.kept, done.skipped) == (1, 1)
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no usable rows"):
        dedup_file(SourceConfig(path=str(path)), tmp_path / "c.jsonl")
    assert not (tmp_path / "c.jsonl").exists()
