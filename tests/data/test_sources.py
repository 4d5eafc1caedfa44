from __future__ import annotations

import csv
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moembed import config
from moembed.data.sources import Source, SourceConfig, iter_rows, load_source, text_problem
from moembed.types import Pair, UserError

PAIRS = [
    Pair("what is a cat", "A cat is an animal.", ("A dog barks.", "A car drives.")),
    Pair("was ist ein Hund?", "Ein Hund ist ein Tier,\nsagt man.", ("Katze",)),
    Pair("何ですか", 'Texts with "quotes", commas and ünïcödé', ()),
]


def rows_of(pairs):
    """Rows with two negative columns, as flat files have them."""
    padded = ([*pair.negatives, None, None] for pair in pairs)
    return [
        {"query": pair.query, "document": pair.document, "negative": first, "negative_2": second}
        for pair, (first, second, *_) in zip(pairs, padded, strict=True)
    ]


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def load(path, **options):
    return load_source(SourceConfig(path=str(path), **options))


@pytest.fixture(params=["data.jsonl", "data.jsonl.gz", "data.parquet", "data.csv"])
def any_path(request, tmp_path):
    return tmp_path / request.param


def test_every_format_gives_the_same_pairs(any_path):
    source = load(write(any_path, rows_of(PAIRS)))
    assert (source.name, len(source), source.skipped) == ("data", 3, 0)
    assert source.pairs([2, 0, 1]) == [PAIRS[2], PAIRS[0], PAIRS[1]]
    assert source.pairs(np.array([1, 1])) == [PAIRS[1], PAIRS[1]]


def test_every_format_streams_the_same_rows_in_blocks(any_path):
    blocks = list(iter_rows(write(any_path, rows_of(PAIRS)), block=2))
    assert [len(block) for block in blocks] == [2, 1]
    assert [row for block in blocks for row in block] == rows_of(PAIRS)


def test_a_folder_is_read_in_order_of_file_names(tmp_path):
    write(tmp_path / "b.parquet", rows_of(PAIRS[1:]))
    write(tmp_path / "a.parquet", rows_of(PAIRS[:1]))
    source = load(tmp_path)
    assert source.name == tmp_path.name
    assert source.pairs(range(3)) == PAIRS
    assert [row["query"] for block in iter_rows(tmp_path, 10) for row in block] == [
        pair.query for pair in PAIRS
    ]


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_a_negative_column_may_hold_lists(tmp_path, name):
    rows = [{"query": p.query, "document": p.document, "negatives": list(p.negatives) or None} for p in PAIRS]
    assert load(write(tmp_path / name, rows)).pairs(range(3)) == PAIRS


def test_columns_are_named_by_the_config(any_path):
    rows = [{"question": "a question", "answer": "an answer", "other": "text", "hard_1": "wrong"}]
    source = load(write(any_path, rows), name="faq", query="question", document="answer", negative="hard")
    assert source.name == "faq"
    assert source.pairs([0]) == [Pair("a question", "an answer", ("wrong",))]


def test_a_query_column_that_starts_like_a_negative_is_not_one(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"n_query": "q", "n_text": "d", "n1": "x"}])
    assert load(path, query="n_query", document="n_text", negative="n").pairs([0]) == [Pair("q", "d", ("x",))]


def test_in_memory_pairs_come_back_as_they_are():
    source = Source.from_pairs("memory", PAIRS)
    assert (source.name, len(source)) == ("memory", 3)
    assert source.pairs([1, 0, 2]) == [PAIRS[1], PAIRS[0], PAIRS[2]]


texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: not text_problem(text))


@settings(max_examples=40)
@given(st.lists(st.builds(Pair, texts, texts, st.lists(texts, max_size=2).map(tuple)), min_size=1))
def test_any_text_survives_jsonl_and_parquet(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("pairs")
    for name in ("a.jsonl", "a.parquet"):
        source = load(write(folder / name, rows_of(pairs)))
        assert source.pairs(range(len(pairs))) == pairs


def test_the_limit_reads_no_further_than_needed(any_path):
    rows = [*rows_of(PAIRS[:2]), {"query": " ", "document": "d", "negative": None, "negative_2": None}]
    write(any_path, rows)
    assert len(load(any_path, limit=2)) == 2
    with pytest.raises(UserError, match="column 'query' is empty"):
        load(any_path, limit=3)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"query": " \t", "document": "d"}, "column 'query' is empty"),
        ({"query": "q", "document": None}, "column 'document' is missing"),
        ({"query": "q", "document": "d", "negative": " "}, "column 'negative' is empty"),
    ],
)
def test_a_bad_row_is_refused_with_its_place_or_skipped_and_counted(any_path, row, problem):
    rows = [{"query": "q", "document": "d", "negative": "n"}, {"negative": None, **row}] * 2
    write(any_path, rows)
    place = {".parquet": "row 2", ".csv": "line 3"}.get(any_path.suffix, "line 2")
    with pytest.raises(UserError, match=rf"{any_path.name}, {place}: {problem}; .*bad_rows=skip"):
        load(any_path)
    source = load(any_path, bad_rows="skip")
    assert source.skipped == 2
    assert source.pairs([0, 1]) == [Pair("q", "d", ("n",))] * 2


@pytest.mark.parametrize("value", [7, 1.5, True, {"a": 1}, ["text"]])
def test_a_text_must_be_a_string(tmp_path, value):
    path = write(tmp_path / "a.jsonl", [{"query": "q", "document": value}])
    with pytest.raises(
        UserError, match=f"line 1: column 'document' is of type {type(value).__name__}, not a string"
    ):
        load(path)


def test_a_parquet_column_of_numbers_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", [{"query": "q", "document": 3}])
    with pytest.raises(UserError, match="row 1: column 'document' is of type int"):
        load(path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"query": "q", "docu', "not JSON"),
        (b'["q", "d"]', "not a JSON object"),
        (b'{"query": "caf\xe9", "document": "d"}', "column 'query' is not UTF-8"),
        (b'{"query": "q", "document": "\\ud83d"}', "column 'document' is not UTF-8"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_of_jsonl_is_refused_or_skipped(tmp_path, line, problem):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"query": "q", "document": "d"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"a.jsonl, line 3: {problem}"):
        load(path)
    source = load(path, bad_rows="skip")
    assert (len(source), source.skipped) == (1, 1)


def test_streaming_refuses_a_line_that_is_no_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": ')
    blocks = iter_rows(path, block=1)
    assert next(blocks) == [{"text": "one"}]
    with pytest.raises(UserError, match=r"a.jsonl, line 2: not JSON"):
        next(blocks)


def test_parquet_bytes_that_are_not_utf8_are_found(tmp_path):
    path = tmp_path / "a.parquet"
    query = pa.array([b"good", b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"query": query, "document": ["d", "d"]}), path)
    with pytest.raises(UserError, match="row 2: column 'query' is not UTF-8"):
        load(path)
    assert load(path, bad_rows="skip").pairs([0]) == [Pair("good", "d")]


def test_csv_bytes_that_are_not_utf8_are_found(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"query,document\nq,d\nq,caf\xe9\n")
    with pytest.raises(UserError, match="line 3: column 'document' is not UTF-8"):
        load(path)


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfquery,document\nq,d\n")
    assert load(path).pairs([0]) == [Pair("q", "d")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("query,document\nq,d,more\n", "line 2: more fields than the header"),
        ("query,document\nq\n", "line 2: column 'document' is missing"),
        ('query,document\nq,"never closed\n', "after line 1: not CSV"),
        ("query,document,query\nq,d,q\n", "names a column twice"),
    ],
)
def test_a_broken_csv_is_refused(tmp_path, text, problem):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=problem):
        load(path)


def test_long_documents_fit_in_csv(tmp_path):
    document = "word " * 100_000
    path = write(tmp_path / "a.csv", [{"query": "q", "document": document}])
    assert load(path).pairs([0]) == [Pair("q", document)]


@pytest.mark.parametrize("bad_rows", ["refuse", "skip"])
def test_a_missing_column_is_refused_with_those_found(any_path, bad_rows):
    write(any_path, [{"question": "q", "document": "d", "extra": "e"}])
    with pytest.raises(UserError, match="there is no column 'query', only 'question', 'document', 'extra'"):
        load(any_path, bad_rows=bad_rows)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="holds no usable rows"):
        load(tmp_path / name)


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    pq.write_table(
        pa.table({"query": pa.array([], pa.string()), "document": pa.array([], pa.string())}),
        tmp_path / "a.parquet",
    )
    with pytest.raises(UserError, match="holds no usable rows"):
        load(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.parquet"])
def test_a_cut_off_file_is_refused(tmp_path, name):
    rows = [{"query": f"q {i * i}", "document": f"d {i**3}"} for i in range(500)]
    path = write(tmp_path / name, rows)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="may be damaged or cut off"):
        load(path, bad_rows="skip")
    with pytest.raises(UserError, match="may be damaged or cut off"):
        list(iter_rows(path, 100))


def test_a_file_that_is_not_gzip_is_refused(tmp_path):
    (tmp_path / "a.jsonl.gz").write_text('{"query": "q", "document": "d"}\n')
    with pytest.raises(UserError, match="may be damaged"):
        load(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("none.jsonl", "no such file"),
        ("notes.txt", r"not a file that ends in \.jsonl"),
        ("folder", "holds no file that ends in .jsonl"),
    ],
)
def test_a_path_that_cannot_be_read_is_refused(tmp_path, name, problem):
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=problem):
        load(tmp_path / name)
    with pytest.raises(UserError, match=problem):
        next(iter_rows(tmp_path / name, 1))


@pytest.mark.parametrize(
    "values",
    [{"weight": 0}, {"weight": float("inf")}, {"limit": 0}, {"negative": ""}, {"path": ""}, {"x": 1}],
)
def test_a_config_out_of_range_is_refused(values):
    with pytest.raises(UserError):
        config.validate(SourceConfig, {"path": "a.jsonl", **values})


def test_a_missing_column_is_named_and_not_skipped(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"anchor": "a", "positive": "b"}])
    with pytest.raises(UserError, match=r"no column 'query', .*; name the columns with the options query"):
        load(path)
    (tmp_path / "b.csv").write_text("query;document\na;b\n")
    with pytest.raises(UserError, match="seem to stand apart by ';', and CSV has commas"):
        load(tmp_path / "b.csv")


def test_a_key_that_stands_there_twice_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"query": "a", "document": "b", "document": "c"}\n')
    with pytest.raises(UserError, match=r"line 1: not JSON .the key 'document' stands there twice"):
        load(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('[{"query": "a", "document": "b"}]\n')
    with pytest.raises(UserError, match="but an array: write one object per line"):
        load(tmp_path / "b.jsonl")


def test_options_that_name_nothing_are_noted(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"query": "a", "document": "b", "hard_negative": "c"}])
    notes = load(path, language="lang", group="set", negative="wrong").notes
    assert notes[1:] == (
        "no row has the column set that group names",
        "no row has the column lang that language names",
        "no column of hard negatives begins with wrong, which negative names",
    )
    assert notes[0].startswith("columns not used: hard_negative (the option negative says")
    assert load(path, negative="hard_negative").notes == ()


def test_a_column_without_a_name_is_told(tmp_path):
    (tmp_path / "a.csv").write_text(",query,document\n0,a,b\n")
    assert load(tmp_path / "a.csv").notes == ("columns not used: one without a name",)


def test_a_group_may_be_a_whole_number(tmp_path):
    rows = [{"query": "a", "document": "b", "source": n} for n in (3, 3.0, "3", 2.5)]
    assert load(write(tmp_path / "a.jsonl", rows)).labels("group", range(4)) == ["3", "3", "3", None]
