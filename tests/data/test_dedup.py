from __future__ import annotations

import datetime
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moembed.data.dedup import SeenTexts, dedup_file
from moembed.data.layouts import plain_rows
from moembed.data.pairs import SourceConfig
from moembed.data.text_key import normalize, text_key
from moembed.data.writer import jsonl_writer
from moembed.types import UserError

LONG = "the quick brown fox jumps over the lazy dog while the patient owl watches from a tall old oak tree"


def dedup(source, out, by="pair", near=None, **options):
    return dedup_file(SourceConfig(path=str(source), **options), out, by, near)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_texts_are_equal_but_for_case_width_and_white_space():
    assert normalize("  Ｆｏｏ\u00a0Straße\n ﬁn ") == "foo strasse fin"
    assert text_key("A  b") == text_key("a b") != text_key("ab")


@given(st.text(), st.text())
def test_the_hash_of_two_texts_keeps_them_apart(one, two):
    assert (text_key(one, two) == text_key(two, one)) == (normalize(one) == normalize(two))
    assert text_key(one, "") != text_key("", one) or not normalize(one)


@pytest.mark.parametrize(("by", "kept"), [("pair", [0, 1, 3]), ("query", [0, 3]), ("document", [0, 1])])
def test_the_first_of_equal_rows_stays_with_all_its_columns(tmp_path, by, kept):
    texts = [("What?", "a  b"), ("what?", "C"), ("WHAT?", "A B"), ("Why?", "a b")]
    rows = [{"query": q, "document": d, "page": n} for n, (q, d) in enumerate(texts)]
    counts = dedup(write(tmp_path / "a.jsonl", rows), tmp_path / "b.jsonl", by)
    assert list(plain_rows(tmp_path / "b.jsonl")) == [rows[row] for row in kept]
    assert (counts.rows, counts.kept, counts.exact, counts.near) == (4, len(kept), 4 - len(kept), 0)


def test_near_duplicates_are_found_and_others_stay():
    seen = SeenTexts(near=0.8)
    assert seen.add("q", LONG)
    assert not seen.add("q", LONG.replace("dog", "cat"))
    assert not seen.add("Q", LONG.upper())
    assert seen.add("q", LONG[: len(LONG) // 2])
    assert seen.add("q", "moles dig tunnels under the meadow")
    assert seen.add("ab", "")
    assert (seen.exact_duplicates, seen.near_duplicates) == (1, 1)


def test_near_duplicates_are_found_without_blanks_between_words():
    seen = SeenTexts(near=0.7)
    text = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
    text += "何でも薄暗いじめじめした所で泣いていた事だけは記憶している。"
    assert seen.add(text)
    assert not seen.add(text.replace("記憶", "記録"))


@pytest.mark.parametrize("near", [0, 1, -0.5, 80])
def test_a_similarity_lies_between_0_and_1(near):
    with pytest.raises(UserError, match="is not between 0 and 1"):
        SeenTexts(near)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"query": "q", "text": "d"}, "line 2: there is no column 'document', only 'query', 'text'"),
        ({"query": "q", "document": " "}, "line 2: column 'document' is empty"),
        ({"query": "q", "document": ["d"]}, "line 2: column 'document' is of type list"),
    ],
)
def test_a_bad_row_is_refused_and_nothing_is_written(tmp_path, row, problem):
    write(tmp_path / "a.jsonl", [{"query": "q", "document": "d"}, row])
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=f"a.jsonl, {problem}"):
        dedup(tmp_path / "a.jsonl", tmp_path / "out" / "b.jsonl")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_what_is_written_is_read_again(tmp_path, suffix):
    rows = [{"text": "naïve\u2028 line", "n": 1}, {"text": "\ud83d", "n": None}]
    with jsonl_writer(tmp_path / f"a.jsonl{suffix}") as write_row:
        for row in rows:
            write_row(row)
    assert list(plain_rows(tmp_path / f"a.jsonl{suffix}")) == rows


def test_dates_become_text_and_bytes_are_refused(tmp_path):
    day = datetime.date(2024, 5, 1)
    pq.write_table(pa.table({"query": ["q"], "document": ["d"], "day": [day]}), tmp_path / "a.parquet")
    dedup(tmp_path / "a.parquet", tmp_path / "b.jsonl.gz")
    assert json.loads(gzip.decompress((tmp_path / "b.jsonl.gz").read_bytes()))["day"] == "2024-05-01"
    pq.write_table(pa.table({"query": ["q"], "document": ["d"], "raw": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="type bytes has no form in JSON"):
        dedup(tmp_path / "a.parquet", tmp_path / "c.jsonl")
    assert not (tmp_path / "c.jsonl").exists()


def test_the_old_file_stays_when_the_new_one_fails(tmp_path):
    write(tmp_path / "a.jsonl", [{"query": "q", "document": "d"}, {}])
    (tmp_path / "b.jsonl").write_text("old")
    with pytest.raises(UserError):
        dedup(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "problem"), [("b.csv", "does not end in .jsonl"), ("a.jsonl/b.jsonl", "cannot write")]
)
def test_a_name_that_cannot_be_written_is_refused(tmp_path, name, problem):
    write(tmp_path / "a.jsonl", [{"query": "q", "document": "d"}])
    with pytest.raises(UserError, match=problem):
        dedup(tmp_path / "a.jsonl", tmp_path / name)
