"""Where pairs may come from: shards, patterns, stores, and the folders of other tools."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moembed.data.sources import Source, SourceConfig, iter_rows, load_source
from moembed.types import Pair, UserError

ROWS = [{"query": f"q{i}", "document": f"document {i}"} for i in range(6)]
PAIRS = [Pair(row["query"], row["document"]) for row in ROWS]


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def load(path, **options) -> Source:
    return load_source(SourceConfig(path=str(path), **options))


def shard(folder: Path, number: int, rows) -> Path:
    path = folder / f"shard-{number:05}.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(rows)))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of two rows."""
    (tmp_path / "squad").mkdir()
    for number in range(3):
        shard(tmp_path / "squad", number, ROWS[2 * number : 2 * number + 2])
    return tmp_path / "squad"


# ---- files, folders, patterns, stores ----


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("kind", "separator"), [("csv", ","), ("tsv", "\t")])
def test_tables_of_text_may_be_compressed(tmp_path, kind, separator, suffix):
    path = tmp_path / f"a.{kind}{suffix}"
    with pa.output_stream(str(path), compression={"": None, ".gz": "gzip", ".zst": "zstd"}[suffix]) as file:
        file.write(
            "".join(f"{separator.join(r)}\n" for r in [ROWS[0].keys(), *(r.values() for r in ROWS)]).encode()
        )
    source = load(path)
    assert source.name == "a"
    assert list(source) == PAIRS


def test_zstandard_jsonl_is_read_and_a_cut_one_refused(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    with pa.output_stream(str(path), compression="zstd") as file:
        file.write(jsonl(ROWS))
    assert list(load(path)) == PAIRS
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="may be damaged or cut off"):
        load(path)


def test_a_folder_of_shards_is_one_source(folder):
    source = load(folder)
    assert (source.name, list(source)) == ("squad", PAIRS)
    assert [row for block in iter_rows(folder, 4) for row in block] == ROWS


def test_a_pattern_names_some_of_the_shards(folder):
    source = load(folder / "shard-0000[12].*")
    assert (source.name, list(source)) == ("squad", PAIRS[2:])
    with pytest.raises(UserError, match="no file matches"):
        load(folder / "part-*.jsonl")


def test_a_folder_of_two_kinds_of_files_is_refused(folder):
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet")
    with pytest.raises(UserError, match=r"holds jsonl and parquet files; name one kind, as in .*/\*\.jsonl"):
        load(folder)


def test_hidden_files_and_those_of_other_kinds_are_left_alone(folder):
    for name in ("README.md", "_SUCCESS", "._shard-00000.jsonl.gz", "dataset_infos.json"):
        (folder / name).write_bytes(b"?")
    assert len(load(folder)) == 6


def test_the_working_directory_has_a_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert load(".").name == load("../squad/.").name == load("./").name == "squad"
    monkeypatch.chdir(folder / "..")
    assert SourceConfig(path=f"{folder}/..").called == folder.parent.name


def test_links_in_a_folder_are_what_they_lead_to(folder, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    for path in folder.iterdir():
        (links / path.name).symlink_to(path)
    (links / "more.jsonl").symlink_to(folder)  # a folder of that name is no file
    assert list(load(links)) == PAIRS
    (folder / "shard-00001.jsonl.gz").unlink()
    with pytest.raises((UserError, OSError), match=r"shard-00001.jsonl.gz"):
        load(links)


@pytest.mark.parametrize("held_out", ["dev.jsonl", "test-00000-of-00002.jsonl", "validation.jsonl"])
def test_the_sides_of_a_split_are_not_trained_on_as_one(tmp_path, held_out):
    for name in ("train.jsonl", held_out):
        (tmp_path / name).write_bytes(jsonl(ROWS))
    with pytest.raises(
        UserError, match=rf"holds train.jsonl and {held_out}, .* as in {tmp_path}/train.jsonl"
    ):
        load(tmp_path)
    assert len(load(tmp_path / "train.jsonl")) == 6
    assert len(load(tmp_path / "*.jsonl")) == 12
    assert sum(map(len, iter_rows(tmp_path, 4))) == 12  # texts to index, not pairs


@pytest.mark.parametrize("store", ["memory", "file"])
def test_object_stores_are_read_by_url(tmp_path, store):
    root = f"memory://{tmp_path.name}" if store == "memory" else f"file://{tmp_path}"
    for name, rows in (("a.jsonl.gz", ROWS[:3]), ("b.jsonl.gz", ROWS[3:])):
        with fsspec.open(f"{root}/set/{name}", "wb", auto_mkdir=True) as file:
            file.write(gzip.compress(jsonl(rows)))
    with fsspec.open(f"{root}/table.parquet", "wb") as file:
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    for path in (f"{root}/set", f"{root}/set/*.jsonl.gz", f"{root}/table.parquet"):
        assert list(load(path)) == PAIRS
    with pytest.raises(UserError, match="no such file or folder"):
        load(f"{root}/none.jsonl")
    with fsspec.open(f"{root}/bad.jsonl", "wb") as file:
        file.write(b"{")
    with pytest.raises(UserError, match=r"bad\.jsonl, line 1: not JSON"):
        load(f"{root}/bad.jsonl")


def test_an_unknown_store_is_refused():
    with pytest.raises(UserError, match=r"cannot look into nowhere://bucket/a.jsonl: Protocol not known"):
        load("nowhere://bucket/a.jsonl")


# ---- shards that differ or cannot be read ----


def test_a_damaged_shard_stops_the_run_or_is_skipped_and_told(folder):
    path = folder / "shard-00001.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"shard-00001.*damaged or cut off.*bad_shards=skip"):
        load(folder)
    source = load(folder, bad_shards="skip")
    assert {pair.query for pair in source} >= {"q0", "q1", "q4", "q5"}
    assert source.skipped == 0
    assert len(source.bad_shards) == 1
    assert "1 bad shards skipped, the first: cannot read" in source.describe()


def test_skipping_shards_does_not_skip_rows(folder):
    shard(folder, 1, [{"query": "q", "document": ""}])
    with pytest.raises(UserError, match=r"line 1: column 'document' is empty.*bad_rows=skip"):
        load(folder, bad_shards="skip")


def test_a_shard_of_other_columns_is_a_bad_shard(folder):
    shard(folder, 1, [{"question": "q", "document": "d"}])
    complaint = r"shard-00001.jsonl.gz, line 1: there is no column 'query', only 'question', 'document'"
    with pytest.raises(UserError, match=complaint):
        load(folder)
    with pytest.raises(UserError, match=f"no row is usable, the last: .*{complaint}"):
        load(folder, bad_rows="skip")
    source = load(folder, bad_rows="skip", bad_shards="skip")
    assert [pair.query for pair in source] == ["q0", "q1", "q4", "q5"]
    assert (source.skipped, len(source.bad_shards)) == (1, 1)


def test_an_empty_shard_is_none_the_worse(folder):
    shard(folder, 1, [])
    assert len(load(folder)) == 4


def test_a_folder_of_empty_shards_is_refused(folder):
    for number in range(3):
        shard(folder, number, [])
    with pytest.raises(UserError, match="squad holds no usable rows"):
        load(folder)


# ---- contrastors ----


@pytest.mark.parametrize("nested", [False, True])
def test_shards_with_counts_are_counted(folder, nested):
    counts = {f"bucket/squad/shard-{number:05}.jsonl.gz": 2 for number in range(3)}
    file = folder / "counts.json"
    file.write_text(json.dumps({"count_per_file": counts, "total_count": 6} if nested else counts))
    (folder / "offsets.json.gz").write_bytes(gzip.compress(b"{}"))
    assert list(load(folder)) == PAIRS
    shard(folder, 2, ROWS[4:5])
    with pytest.raises(UserError, match=r"shard-00002.jsonl.gz holds 1 rows, its counts.json says 2"):
        load(folder)
    (folder / "shard-00002.jsonl.gz").unlink()
    with pytest.raises(UserError, match=r"lacks the shard shard-00002.jsonl.gz"):
        load(folder)
    file.write_text("[]")
    with pytest.raises(UserError, match=r"counts.json is not a JSON object of rows by shard"):
        load(folder)


# ---- BGE ----


def test_bge_rows_give_a_pair_for_every_positive(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"query": "q", "pos": ["a", "b"], "neg": ["x", "y"], "pos_scores": [1, 2], "neg_scores": [0.1, 0.2]},
        {"query": "r", "pos": ["c"]},
    ]
    path.write_bytes(jsonl(rows))
    source = load(path)
    assert list(source) == [Pair("q", "a", ("x", "y")), Pair("q", "b", ("x", "y")), Pair("r", "c")]
    assert len(load(path, limit=2)) == 2


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"query": "q", "pos": []}, "column 'pos' is empty"),
        ({"query": "q", "pos": ["a", ""]}, "column 'pos' is empty"),
        ({"query": "q", "pos": ["a"], "neg": [3]}, "column 'neg' is of type int"),
        ({"query": "q", "pos": "a"}, "there is no column 'document'"),
    ],
)
def test_a_bad_bge_row_is_refused(tmp_path, row, problem):
    (tmp_path / "a.jsonl").write_bytes(jsonl([row]))
    with pytest.raises(UserError, match=f"line 1: {problem}"):
        load(tmp_path / "a.jsonl")


# ---- BEIR ----


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "nq"
    (folder / "qrels").mkdir(parents=True)
    documents = [("d1", "Cats", "purr"), ("d2", "", "dogs bark"), ("d3", "Fish", "swim")]
    rows = [{"_id": name, "title": title, "text": text} for name, title, text in documents]
    (folder / "corpus.jsonl").write_bytes(jsonl(rows))
    (folder / "queries.jsonl").write_bytes(jsonl([{"_id": name, "text": f"query {name}"} for name in "ab"]))
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\na\td1\t2\na\td2\t1\nb\td3\t0\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nb\td3\t1\n")
    return folder


def test_a_beir_folder_gives_a_pair_for_every_judgement_above_zero(beir):
    source = load(beir)
    assert source.name == "nq"
    assert list(source) == [Pair("query a", "Cats purr"), Pair("query a", "dogs bark")]
    assert list(load(beir, split="test")) == [Pair("query b", "Fish swim")]


def test_a_beir_folder_of_parquet_has_one_split(beir):
    for name in ("corpus", "queries"):
        rows = [json.loads(line) for line in (beir / f"{name}.jsonl").read_text().splitlines()]
        pq.write_table(pa.Table.from_pylist(rows), beir / f"{name}.parquet")
        (beir / f"{name}.jsonl").unlink()
    judged = {"query-id": ["b"], "corpus-id": ["d1"], "score": [1.0]}
    pq.write_table(pa.table(judged), beir / "qrels.parquet")
    assert list(load(beir)) == [Pair("query b", "Cats purr")]


def test_test_judgements_are_not_trained_on_unasked(beir):
    (beir / "qrels" / "train.tsv").unlink()
    with pytest.raises(
        UserError, match="no judgements of the split 'train', only test; choose one with split"
    ):
        load(beir)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a\tnone\t1", "line 2: the corpus has no id 'none'"),
        ("none\td1\t1", "line 2: the queries have no id 'none'"),
        ("a\td1\tgood", "line 2: the score 'good' is not a number"),
        ("a\td1", "line 2: the score None is not a number"),
    ],
)
def test_a_bad_judgement_is_refused(beir, line, problem):
    (beir / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{line}\n")
    with pytest.raises(UserError, match=f"train.tsv, {problem}"):
        load(beir)


def test_a_beir_folder_without_a_corpus_is_refused(beir):
    (beir / "corpus.jsonl").unlink()
    with pytest.raises(UserError, match="has no corpus: a file corpus"):
        load(beir)


# ---- Hugging Face ----


def test_data_sets_saved_to_disk_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    extra = [{**row, "negatives": ["n"], "language": "en", "number": 3} for row in ROWS]
    data = datasets.Dataset.from_list(extra)
    data.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict(train=data, dev=data.select([1])).save_to_disk(tmp_path / "splits")
    source = load(tmp_path / "one")
    assert list(source) == [Pair(pair.query, pair.document, ("n",)) for pair in PAIRS]
    assert source.count("language") == {"en": 6}
    assert len(load(tmp_path / "splits")) == 6
    assert len(load(tmp_path / "splits", split="dev")) == 1
    with pytest.raises(UserError, match="has no split 'test', only train, dev"):
        load(tmp_path / "splits", split="test")
    with pytest.raises(UserError, match="is a single split"):
        load(tmp_path / "one", split="dev")
    with pytest.raises(
        UserError, match="one, row 1: there is no column 'question', only 'query', 'document'"
    ):
        load(tmp_path / "one", query="question")


def test_data_sets_are_loaded_by_name(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_bytes(jsonl(ROWS))
    source = load(f"hf:{tmp_path / 'set'}")
    assert (source.name, list(source)) == ("set", PAIRS)
    with pytest.raises(UserError, match="cannot load the data set"):
        load(f"hf:{tmp_path / 'set'}", split="nothing")
    with pytest.raises(UserError, match="cannot load the data set 'nobody/nothing'"):
        load("hf:nobody/nothing")


@pytest.mark.parametrize("option", ["split", "subset"])
def test_plain_files_have_neither_splits_nor_subsets(folder, option):
    with pytest.raises(UserError, match=f"so {option}=x means nothing"):
        load(folder, **{option: "x"})


# ---- labels ----


def test_languages_and_groups_are_kept_where_there_are_any(tmp_path):
    labels = [("en", "web"), ("de", "web"), (None, "web"), (7, ""), ("en", None)]
    rows = [
        {**row, "language": lang, "source": group} for row, (lang, group) in zip(ROWS, labels, strict=False)
    ]
    (tmp_path / "a.jsonl").write_bytes(jsonl([*rows, ROWS[5]]))
    source = load(tmp_path / "a.jsonl")
    assert source.languages([4, 1, 2, 3]) == ["en", "de", None, None]
    assert list(source.count("language").items()) == [(None, 3), ("en", 2), ("de", 1)]
    assert source.count("group") == {"web": 3, None: 3}
    assert load(tmp_path / "a.jsonl", language=None).count("language") == {None: 6}
    assert load(tmp_path / "a.jsonl", language="source").count("language") == {"web": 3, None: 3}
