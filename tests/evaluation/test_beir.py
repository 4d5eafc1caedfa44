from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moembed.evaluation.beir import RetrievalTask, load_task, save_task
from moembed.types import UserError

Rows = list[dict[str, Any]]

CORPUS: Rows = [
    {"_id": "d0", "title": "Moles", "text": "dig tunnels"},
    {"_id": "d1", "title": "", "text": "Voles eat roots"},
    {"_id": "d2", "title": None, "text": ""},
    {"_id": "d3", "title": "Owls", "text": "hunt voles"},
]
QUERIES: Rows = [{"_id": "q0", "text": "who digs tunnels?"}, {"_id": "q1", "text": "who eats roots?"}]
QRELS: Rows = [
    {"query-id": "q1", "corpus-id": "d1", "score": 2},
    {"query-id": "q0", "corpus-id": "d0", "score": 1},
    {"query-id": "q1", "corpus-id": "d3", "score": 0},
]
MANY: Rows = [{"query-id": f"q{n}", "corpus-id": "d0", "score": 1} for n in range(40)]
MANY_QUERIES: Rows = [{"_id": f"q{n}", "text": f"query {n}"} for n in range(40)]


def write_parquet(folder: Path, corpus: Rows = CORPUS, queries: Rows = QUERIES, qrels: Rows = QRELS) -> Path:
    for name, rows in (("corpus", corpus), ("queries", queries), ("qrels", qrels)):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder


def write_jsonl(
    folder: Path, corpus: Rows = CORPUS, queries: Rows = QUERIES, qrels: Rows = QRELS, split: str = "test"
) -> Path:
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row.values())) for row in qrels)]
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


writers = pytest.mark.parametrize("write", [write_parquet, write_jsonl])


def judged(task: RetrievalTask) -> dict[tuple[str, str], float]:
    qrels = task.qrels
    return {
        (task.query_ids[query], task.document_ids[document]): grade
        for query, document, grade in zip(qrels.query_R, qrels.document, qrels.grade, strict=True)
    }


@writers
def test_reads_a_task(write: Any, tmp_path: Path) -> None:
    task = load_task(str(write(tmp_path)))
    assert task.name == tmp_path.name
    assert task.documents == ["Moles dig tunnels", "Voles eat roots", "", "Owls hunt voles"]
    assert task.document_ids == ["d0", "d1", "d2", "d3"]
    assert task.queries == ["who digs tunnels?", "who eats roots?"]
    assert task.query_ids == ["q0", "q1"]
    assert judged(task) == {("q0", "d0"): 1, ("q1", "d1"): 2, ("q1", "d3"): 0}
    assert task.notes == []


def test_titles_and_whole_number_ids_are_optional_and_allowed(tmp_path: Path) -> None:
    corpus, queries = [{"_id": 7, "text": "seven"}], [{"_id": 1, "text": "one", "title": "not read"}]
    task = load_task(
        write_parquet(tmp_path, corpus, queries, [{"query-id": 1, "corpus-id": "7", "score": 1}])
    )
    assert task.notes == ["columns not used: title of queries"]
    assert (task.documents, task.queries, judged(task)) == (["seven"], ["one"], {("1", "7"): 1})


def test_queries_without_a_relevant_document_are_left_out_and_noted(tmp_path: Path) -> None:
    queries = [{"_id": "lost", "text": "?"}, *QUERIES, {"_id": "graded zero", "text": "?"}]
    qrels = [*QRELS, {"query-id": "graded zero", "corpus-id": "d2", "score": 0}]
    task = load_task(write_parquet(tmp_path, queries=queries, qrels=qrels))
    assert task.query_ids == ["q0", "q1"]
    assert judged(task) == {("q0", "d0"): 1, ("q1", "d1"): 2, ("q1", "d3"): 0}
    assert task.notes == ["2 of 4 queries have no relevant document and were left out"]


def test_a_few_unknown_ids_are_left_out_and_noted(tmp_path: Path) -> None:
    qrels = [*MANY, {"query-id": "q0", "corpus-id": "gone", "score": 1}]
    task = load_task(write_parquet(tmp_path, queries=MANY_QUERIES, qrels=qrels))
    assert len(task.queries) == 40
    assert task.notes == [
        "1 of 41 judgements name unknown queries or documents (such as 'gone') and were left out"
    ]


def test_many_unknown_ids_are_refused(tmp_path: Path) -> None:
    qrels = MANY + [{"query-id": f"x{n}", "corpus-id": "d0", "score": 1} for n in range(5)]
    with pytest.raises(UserError, match=r"5 of 45 .*'x0', 'x1', 'x2'\)"):
        load_task(write_parquet(tmp_path, queries=MANY_QUERIES, qrels=qrels))


def test_of_repeated_judgements_the_highest_grade_counts(tmp_path: Path) -> None:
    qrels = [*QRELS, {"query-id": "q1", "corpus-id": "d1", "score": 1}]
    task = load_task(write_parquet(tmp_path, qrels=qrels))
    assert judged(task)["q1", "d1"] == 2
    assert task.notes == ["1 repeated judgements were merged, the highest grade counts"]


def test_the_only_split_is_read_but_several_are_ambiguous(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path, split="dev")
    assert len(load_task(folder).queries) == 2
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(UserError, match=r"several splits \(dev, train\)"):
        load_task(folder)


def test_byte_order_marks_windows_lines_and_blank_lines_are_fine(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path)
    for file in (folder / "corpus.jsonl", folder / "qrels" / "test.tsv"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert len(judged(load_task(folder))) == 3


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_missing_files(file: str, tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path)
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"has no {file.split('.')[0].split('/')[0]}:"):
        load_task(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such task folder"):
        load_task(tmp_path / "nowhere")


def drop(rows: Rows, column: str) -> Rows:
    return [{key: value for key, value in row.items() if key != column} for row in rows]


def change(rows: Rows, row: int, **values: Any) -> Rows:
    return [{**old, **values} if number == row else old for number, old in enumerate(rows)]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"corpus": drop(CORPUS, "text")}, r"corpus.*(row|line) 1\b.*no column 'text'"),
        ({"corpus": drop(CORPUS, "_id")}, "no column '_id'; the columns are title, text"),
        ({"queries": drop(QUERIES, "text")}, "queries.*no column 'text'"),
        ({"corpus": change(CORPUS, 1, text=None)}, r"(row|line) 2\b.*'text' is missing"),
        ({"queries": [{"_id": "q0", "text": 3.5}]}, "'text' is of type float, not a string"),
        ({"corpus": [{"_id": "d0", "title": 1.5, "text": ""}]}, "'title' is of type float, not a string"),
        ({"corpus": [{"_id": 1.5, "text": ""}]}, "'_id' is of type float, not a string"),
        ({"corpus": [*CORPUS, CORPUS[1]]}, r"(row|line) 5\b.*'d1' is used twice"),
        ({"queries": [*QUERIES, QUERIES[0]]}, "'q0' is used twice"),
        ({"corpus": []}, "corpus.* is empty"),
        ({"queries": []}, "queries.* is empty"),
        ({"qrels": change(QRELS, 1, score="high")}, r"(row \d|line 3)\b.*the score 'high' is not a number"),
        ({"qrels": [{**row, "score": float("nan")} for row in QRELS]}, "nan'? is not a number"),
        ({"qrels": []}, "no query has a relevant document"),
        ({"qrels": [{**row, "score": 0} for row in QRELS]}, "no query has a relevant document"),
    ],
)
@writers
def test_bad_tables_are_refused(write: Any, parts: dict[str, Rows], message: str, tmp_path: Path) -> None:
    if write is write_parquet and "high" in message:  # one Parquet column holds one type
        parts = {"qrels": [{**row, "score": "high"} for row in QRELS]}
    with pytest.raises(UserError, match=message):
        load_task(write(tmp_path, **parts))


@pytest.mark.parametrize("column", ["query-id", "corpus-id", "score"])
def test_missing_columns_of_judgements(column: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"qrels.parquet, row 1: no column '{column}'"):
        load_task(write_parquet(tmp_path, qrels=drop(QRELS, column)))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "corpus.jsonl",
            b'{"_id": "d0", "text": "mole"}\n{"_id": "d1", "te',
            r"line 2: not JSON \(Unterminated string",
        ),
        ("corpus.jsonl", b'["d0"]\n', "line 1: not a JSON object"),
        ("corpus.jsonl", b'{"_id": "d0", "text": "caf\xe9"}\n', "line 1: 'text' is not UTF-8"),
        ("corpus.jsonl", b'{"_id": "d0", "text": "\\ud83d"}\n', "line 1: 'text' is not UTF-8"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq0\td0\n", "line 2: the score None is not a number"),
        (
            "qrels/test.tsv",
            b"query-id\tcorpus-id\tscore\nq0\td0\t1\t2\n",
            "line 2: more fields than the header",
        ),
        ("qrels/test.tsv", b"q0\t0\td0\t1\nq1\t0\td1\t1\n", "line 2: no column 'query-id'"),
        ("qrels.parquet", b"PAR1 cut short", "cannot read .*qrels.parquet"),
    ],
)
def test_broken_files_are_refused(file: str, content: bytes, message: str, tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path)
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_task(folder)


def test_truncated_parquet_and_invalid_text_in_it(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path)
    whole = (folder / "corpus.parquet").read_bytes()
    (folder / "corpus.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot read .*corpus\.parquet"):
        load_task(folder)
    (folder / "corpus.parquet").write_bytes(whole.replace(b"roots", b"r\xffots"))
    with pytest.raises(UserError, match=r"corpus\.parquet, row 2: 'text' is not UTF-8"):
        load_task(folder)


@writers
def test_a_saved_task_is_read_back(write: Any, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    first = load_task(write(tmp_path / "first"))
    save_task(first, tmp_path / "second")
    second = load_task(tmp_path / "second")
    assert (second.documents, second.document_ids) == (first.documents, first.document_ids)
    assert (second.queries, second.query_ids) == (first.queries, first.query_ids)
    assert judged(second) == judged(first)
    assert second.language == first.language


@pytest.mark.parametrize(
    ("folder", "columns", "expected"),
    [
        ("xquad-de", [{}, {}], {"q0": "de", "q1": "de"}),
        ("mixed-de", [{"language": "sw"}, {"language": ""}], {"q0": "sw", "q1": "de"}),
        ("scifact", [{"language": "fr"}, {"language": None}], {"q0": "fr"}),
        ("scifact", [{}, {}], {}),
    ],
)
def test_languages_come_from_the_queries_or_the_name(
    folder: str, columns: Rows, expected: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / folder).mkdir()
    queries = [query | more for query, more in zip(QUERIES, columns, strict=True)]
    task = load_task(write_jsonl(tmp_path / folder, queries=queries))
    assert task.language == expected
    save_task(task, tmp_path / "saved")
    assert load_task(tmp_path / "saved").language == expected


def test_tables_that_are_not_read_are_noted(tmp_path: Path) -> None:
    write_jsonl(tmp_path)
    (tmp_path / "top_ranked").mkdir()
    pq.write_table(pa.Table.from_pylist([{"query-id": "q1"}]), tmp_path / "top_ranked" / "test.parquet")
    (tmp_path / "corpus.tsv").write_text("_id\ttext\n")
    assert load_task(tmp_path).notes[-2:] == [
        "tables not used: top_ranked (every document is a candidate for every query)",
        "the table corpus lies there more than once; not read: corpus.tsv",
    ]
