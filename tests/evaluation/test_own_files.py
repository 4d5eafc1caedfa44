from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import COLUMNS, LabelTask, PairTask, load_any
from moembed.types import UserError

Rows = list[dict[str, Any]]

STS: Rows = [
    {"sentence1": "a mole digs", "sentence2": "a mole is digging", "score": 4.8},
    {"sentence1": "an owl hunts", "sentence2": "worms", "score": 0},
]
BITEXT: Rows = [
    {"sentence1": "Maulwurf", "sentence2": "mole", "pair": "deu-eng"},
    {"sentence1": "Eule", "sentence2": "owl", "pair": "deu-eng"},
    {"sentence1": "taupe", "sentence2": "mole", "pair": "fra-eng"},
    {"sentence1": "hibou", "sentence2": "owl", "pair": "fra-eng"},
]
LABELLED_PAIRS: Rows = [
    {"sentence1": "a mole digs", "sentence2": "a mole is digging", "labels": 1},
    {"sentence1": "an owl hunts", "sentence2": "an owl sleeps", "labels": 0},
]
LABELLED: Rows = [
    {"text": f"{split} {label} {language}", "label": label, "split": split, "language": language}
    for language in ("en", "de")
    for split in ("train", "test")
    for label in ("mole", "owl")
]
CLUSTERS: Rows = [{"text": f"text {n}", "label": n % 2} for n in range(4)]
RERANKING: Rows = [
    {"query": "who digs?", "positive": ["moles"], "negative": ["owls", "voles"]},
    {"query": "who hunts?", "positive": ["owls", "foxes"], "negative": ["worms", "worms"]},
]
PAIRS: Rows = [
    {"query": "who digs?", "document": "moles"},
    {"query": "who hunts?", "document": "owls"},
    {"query": "who digs?", "document": "badgers"},
]
EVERY = {
    "sts": STS, "pair_classification": LABELLED_PAIRS,
    "bitext": BITEXT, "classification": LABELLED, "clustering": CLUSTERS,
    "reranking": RERANKING, "retrieval": PAIRS,
}  # fmt: skip


def write(path: Path, rows: Rows) -> Path:
    kind = path.suffix[1:]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def graded(task: RetrievalTask) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {query: {} for query in task.queries}
    qrels = task.qrels
    for query, document, grade in zip(qrels.query_R, qrels.document, qrels.grade, strict=True):
        found[task.queries[query]][task.documents[document]] = grade
    return found


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "tsv"])
@pytest.mark.parametrize("kind", list(COLUMNS))
def test_every_kind_is_told_by_its_columns_in_every_format(kind: str, suffix: str, tmp_path: Path) -> None:
    task = load_any(write(tmp_path / f"some.{suffix}", EVERY[kind]))
    assert (task.kind, task.name) == (kind, "some")
    assert len(task) == {"classification": 4, "retrieval": 2}.get(kind, len(EVERY[kind]))


def test_sts(tmp_path: Path) -> None:
    task = load_any(write(tmp_path / "sts-de.jsonl", STS))
    assert isinstance(task, PairTask)
    assert task.sentence1 == ["a mole digs", "an owl hunts"]
    assert task.sentence2 == ["a mole is digging", "worms"]
    assert task.gold_Q.tolist() == [4.8, 0]
    assert task.language == ["de", "de"]


def test_bitext_goes_by_its_pairs_or_else_by_the_file(tmp_path: Path) -> None:
    task = load_any(write(tmp_path / "some.csv", BITEXT))
    assert isinstance(task, PairTask)
    assert task.language == ["deu-eng", "deu-eng", "fra-eng", "fra-eng"]
    plain = [{key: value for key, value in row.items() if key != "pair"} for row in BITEXT]
    task = load_any(write(tmp_path / "some.csv", plain))
    assert isinstance(task, PairTask)
    assert task.language == [""] * 4
    assert len(task.gold_Q) == 0


def test_classification(tmp_path: Path) -> None:
    rows = [*LABELLED, {"text": "x", "label": "mole", "split": "validation", "language": "en"}]
    task = load_any(write(tmp_path / "some.parquet", rows))
    assert isinstance(task, LabelTask)
    assert task.labels == ["mole", "owl"] * 4
    assert task.train_N.tolist() == [True, True, False, False] * 2
    assert task.language == ["en"] * 4 + ["de"] * 4
    assert task.notes == ["1 of 9 rows are of another split than train and test: left out"]


def test_test_labels_that_nothing_teaches_are_noted(tmp_path: Path) -> None:
    rows = [*LABELLED, {"text": "x", "label": "fox", "split": "test", "language": "de"}]
    task = load_any(write(tmp_path / "some.jsonl", rows))
    assert task.notes == ["1 of 3 test texts in 'de' have a label that no train row has: they count as wrong"]


def test_labels_may_be_whole_numbers(tmp_path: Path) -> None:
    for suffix in ("parquet", "csv"):
        task = load_any(write(tmp_path / f"some.{suffix}", CLUSTERS))
        assert isinstance(task, LabelTask)
        assert task.labels == ["0", "1", "0", "1"]
        assert not task.train_N.any()


def test_reranking_has_candidates_of_its_own(tmp_path: Path) -> None:
    task = load_any(write(tmp_path / "some.parquet", RERANKING))
    assert isinstance(task, RetrievalTask)
    assert graded(task) == {
        "who digs?": {"moles": 1, "owls": 0, "voles": 0},
        "who hunts?": {"owls": 1, "foxes": 1, "worms": 0},
    }
    assert task.documents == ["moles", "owls", "voles", "foxes", "worms"]


def test_a_text_on_both_sides_of_a_reranking_query_is_relevant(tmp_path: Path) -> None:
    rows = [
        {"query": "who digs?", "positive": ["moles"], "negative": ["moles", "owls"]},
        {"query": "who digs?", "positive": ["owls"], "negative": ["moles", "voles"]},
    ]
    task = load_any(write(tmp_path / "some.jsonl", rows))
    assert isinstance(task, RetrievalTask)
    assert graded(task) == {"who digs?": {"moles": 1, "owls": 1, "voles": 0}}
    assert task.notes == [
        "1 of 2 rows repeat a query and were merged with its first row",
        "1 negatives are positives of the same query and count as such",
    ]


def test_pairs_are_searched_among_the_documents_of_the_file(tmp_path: Path) -> None:
    rows = [row | {"language": language} for row, language in zip(PAIRS, ["en", "", "de"], strict=True)]
    task = load_any(write(tmp_path / "some.tsv", rows))
    assert isinstance(task, RetrievalTask)
    assert task.documents == ["moles", "badgers", "owls"]
    assert graded(task) == {"who digs?": {"moles": 1, "badgers": 1}, "who hunts?": {"owls": 1}}
    assert task.language == {"0": "en"}
    assert task.notes == ["1 of 3 rows repeat a query and were merged with its first row"]


def test_folders_are_beir(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    write(tmp_path / "corpus.jsonl", [{"_id": "d", "text": "moles"}])
    write(tmp_path / "queries.jsonl", [{"_id": "q", "text": "who digs?"}])
    write(tmp_path / "qrels" / "test.tsv", [{"query-id": "q", "corpus-id": "d", "score": 1}])
    task = load_any(tmp_path)
    assert isinstance(task, RetrievalTask)
    assert (task.kind, len(task)) == ("retrieval", 1)


def put(rows: Rows, row: int, **values: Any) -> Rows:
    return [old | values if number == row else old for number, old in enumerate(rows)]


ENGLISH = LABELLED[:4]
BAD: list[tuple[Rows, str]] = [
    ([row | {"labels": 1} for row in BITEXT], "every one of labels is 1: there is nothing to tell apart"),
    ([row | {"label": "entailment"} for row in BITEXT], "line 1: the label 'entailment' is not a number"),
    ([{"text": "a", "class": "b"}], "has the columns text, class, .*; clustering: text, label"),
    (put(STS, 1, sentence1=""), "line 2: 'sentence1' is empty"),
    (put(STS, 1, sentence2=None), "line 2: 'sentence2' is missing"),
    (put(STS, 0, sentence1=7), "line 1: 'sentence1' is of type int, not a string"),
    (put(STS, 1, score=float("nan")), "line 2: the score nan is not a number"),
    (put(STS, 1, score="high"), "line 2: the score 'high' is not a number"),
    (put(STS, 1, score=10**400), "line 2: the score 1" + "0" * 59 + "… is not a number"),
    (put(STS, 1, score=4.8), "every score is 4.8, and nothing correlates with a constant"),
    (STS[:1], "every score is 4.8"),
    ([*STS, {"sentence1": "a", "sentence2": "b"}], "line 3: no column 'score'"),
    (put(BITEXT, 3, sentence2="mole"), "one sentence2 of the pair 'fra-eng' leaves nothing to choose from"),
    (put(BITEXT, 3, pair=""), "line 4: 'pair' is empty"),
    (put(LABELLED, 0, label=None), "line 1: 'label' is missing"),
    (put(LABELLED, 0, label=0.5), "line 1: 'label' is of type float"),
    (put(LABELLED, 0, text=" "), "line 1: 'text' is empty"),
    (put(LABELLED, 0, split=None), "line 1: 'split' is missing"),
    (put(LABELLED, 0, language=5), "line 1: 'language' is of type int"),
    (put(ENGLISH, 1, label="mole"), "language 'en': all train rows have the label 'mole'"),
    (LABELLED[:6], "language 'de': no test rows"),
    ([*ENGLISH, *LABELLED[6:]], "language 'de': no train rows"),
    ([row | {"split": "dev"} for row in ENGLISH], "no row has the split train or test"),
    ([row | {"label": "one"} for row in CLUSTERS], "at least two labels, all texts have 'one'"),
    ([row | {"positive": []} for row in RERANKING], "no query has a text in 'positive' and another one"),
    ([RERANKING[0] | {"negative": [" MOLES "]}], "no query has a text in 'positive' and another one"),
    (put(RERANKING, 1, negative="worms"), "line 2: 'negative' must be a list of texts"),
    (put(RERANKING, 0, negative=["owls", ""]), "line 1: a text of 'negative' is empty"),
    (put(PAIRS, 0, query=None), "line 1: 'query' is missing"),
    (PAIRS[:1], "one document leaves nothing to choose from"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), BAD)
def test_rows_that_make_no_task_are_refused(rows: Rows, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_any(write(tmp_path / "some.jsonl", rows))
    assert str(tmp_path / "some.jsonl") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("some.jsonl", b"", "is empty"),
        ("some.csv", b"text,label\n", "is empty"),
        ("some.csv", b"text,label\na,b,c\n", "line 2: more fields than the header"),
        ("some.csv", b"text,label\ncaf\xe9,b\nc,d\n", "line 2: 'text' is not UTF-8"),
        ("some.jsonl", b'{"text": "a", "label"', "line 1: not JSON"),
        ("some.parquet", b"PAR1 cut short", "cannot read .*some.parquet"),
        ("some.txt", b"text", "is no task: it must be a folder in BEIR layout or a file ending in .jsonl"),
    ],
)
def test_files_that_cannot_be_read_are_refused(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_any(tmp_path / name)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such task, neither a folder nor a file"):
        load_any(tmp_path / "nowhere.jsonl")


def test_numbers_of_csv_are_numbers(tmp_path: Path) -> None:
    task = load_any(write(tmp_path / "some.csv", STS))
    assert isinstance(task, PairTask)
    np.testing.assert_array_equal(task.gold_Q, [4.8, 0])


def test_kinds_of_sentence_pairs_go_by_their_gold_column(tmp_path: Path) -> None:
    bare = [{"sentence1": "a", "sentence2": "b"}, {"sentence1": "c", "sentence2": "d"}]
    kinds = {
        "similarity_score": ([0.5, 3], "sts"), "score": ([0, 1], "sts"), "label": ([0.5, 3], "sts"),
        "labels": ([0, 1], "pair_classification"),
    }  # fmt: skip
    for column, (gold, kind) in kinds.items():
        for suffix in ("jsonl", "csv"):
            rows = [row | {column: value} for row, value in zip(bare, gold, strict=True)]
            task = load_any(write(tmp_path / f"some.{suffix}", rows))
            assert isinstance(task, PairTask)
            assert (task.kind, task.gold_Q.tolist()) == (kind, gold)
            read_as = [
                "label has other numbers than 0 and 1 and is read as a similarity: higher is more alike"
            ]
            assert task.notes == (read_as if column == "label" else [])
    task = load_any(write(tmp_path / "some.jsonl", [row | {"label": n == 0} for n, row in enumerate(bare)]))
    assert task.kind == "pair_classification"


@pytest.mark.parametrize("column", ["is_duplicate", "similarity", "relatedness_score", "gold_label", "Label"])
def test_graded_sentence_pairs_are_not_taken_for_translations(tmp_path: Path, column: str) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", column: 1}, {"sentence1": "c", "sentence2": "d", column: 0}]
    with pytest.raises(UserError, match=f"grades its sentence pairs in {column}, .* call the column score"):
        load_any(write(tmp_path / "some.jsonl", rows))


def test_pairs_in_lists_as_older_sets_of_mteb_have_them(tmp_path: Path) -> None:
    row = {"sentence1": ["a", "c"], "sentence2": ["b", "d"], "labels": [1, 0]}
    task = load_any(write(tmp_path / "some.jsonl", [row]))
    assert isinstance(task, PairTask)
    assert (task.sentence1, task.sentence2, task.gold_Q.tolist()) == (["a", "c"], ["b", "d"], [1, 0])
    with pytest.raises(UserError, match="lists have different lengths: sentence1 2, sentence2 2, labels 1"):
        load_any(write(tmp_path / "some.jsonl", [row | {"labels": [1]}]))


def test_columns_that_are_not_used_are_noted(tmp_path: Path) -> None:
    task = load_any(write(tmp_path / "some.jsonl", [row | {"score": 1, "url": "u"} for row in PAIRS]))
    assert "columns not used: score, url (every row counts, whatever its score)" in task.notes
    both = [row | {"labels": 1} for row in STS]
    assert load_any(write(tmp_path / "some.jsonl", both)).notes == ["columns not used: labels"]


def test_queries_with_an_empty_side_are_left_out_and_noted(tmp_path: Path) -> None:
    rows = [*RERANKING, {"query": "a", "positive": ["x"], "negative": []}]
    rows += [{"query": "b", "positive": None, "negative": ["x"]}]
    task = load_any(write(tmp_path / "some.jsonl", rows))
    assert isinstance(task, RetrievalTask)
    assert task.queries == ["who digs?", "who hunts?"]
    assert task.documents == ["moles", "owls", "voles", "foxes", "worms"]
    assert task.notes == ["2 of 4 queries lack a relevant text or one that is not, and were left out"]


def test_lists_of_csv_are_lists_written_as_text(tmp_path: Path) -> None:
    task = load_any(write(tmp_path / "some.csv", RERANKING))
    assert isinstance(task, RetrievalTask)
    assert graded(task)["who hunts?"] == {"owls": 1, "foxes": 1, "worms": 0}


def test_equal_texts_are_one_query_and_one_document(tmp_path: Path) -> None:
    rows = [*PAIRS, {"query": "Who  DIGS?", "document": "Moles "}]
    task = load_any(write(tmp_path / "some.jsonl", rows))
    assert isinstance(task, RetrievalTask)
    assert graded(task) == {"who digs?": {"moles": 1, "badgers": 1}, "who hunts?": {"owls": 1}}
