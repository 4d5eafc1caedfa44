"""One reader of BEIR folders, in every layout they are published in: evaluation, training and mining."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from function_encoder import FunctionEncoder
from moembed.data.sources import SourceConfig, load_corpus, load_source
from moembed.evaluation.beir import load_task, save_task, without_own
from moembed.evaluation.mteb_tasks import local_task
from moembed.evaluation.tasks import evaluate, evaluate_bm25
from moembed.types import Pair, UserError

Rows = list[dict[str, Any]]

CORPUS: Rows = [
    {"_id": "1", "title": "Moles", "text": "dig tunnels"},
    {"_id": "2", "title": "", "text": "Owls hunt voles"},
    {"_id": "3", "title": None, "text": "Bees make honey"},
]
QUERIES: Rows = [{"_id": "1", "text": "who digs tunnels?"}, {"_id": "2", "text": "who hunts?"}]
QRELS: Rows = [{"query-id": q, "corpus-id": q, "score": 1} for q in ("1", "2")]


def jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def tsv(rows: Rows) -> bytes:
    return "\n".join(["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]).encode()


def renamed(rows: Rows) -> Rows:
    return [{"id": row["_id"], **{k: v for k, v in row.items() if k != "_id"}} for row in rows]


def parquet(path: Path, rows: Rows) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def plain(folder: Path) -> None:
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_bytes(jsonl(CORPUS))
    (folder / "queries.jsonl").write_bytes(jsonl(QUERIES))
    (folder / "qrels" / "test.tsv").write_bytes(tsv(QRELS))


def compressed(folder: Path) -> None:
    plain(folder)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()


def jsonl_judgements(folder: Path) -> None:
    plain(folder)
    (folder / "qrels" / "test.tsv").unlink()
    (folder / "qrels" / "test.jsonl").write_bytes(jsonl(QRELS))


def folders_of_parquet(folder: Path) -> None:
    """As mteb publishes: the id is called id, a split may have several parts, others lie beside it."""
    parquet(folder / "corpus" / "test-00000-of-00002.parquet", renamed(CORPUS[:2]))
    parquet(folder / "corpus" / "test-00001-of-00002.parquet", renamed(CORPUS[2:]))
    parquet(folder / "queries" / "queries-00000-of-00001.parquet", renamed(QUERIES))
    parquet(folder / "qrels" / "test-00000-of-00001.parquet", QRELS)
    parquet(folder / "qrels" / "dev-00000-of-00001.parquet", QRELS[:1])


def default_table_of_the_hub(folder: Path) -> None:
    """As push_to_hub leaves it: the judgements are the default table, whose folder is called data."""
    folders_of_parquet(folder)
    (folder / "qrels").rename(folder / "data")


def numbers_of_pandas(folder: Path) -> None:
    parquet(folder / "corpus.parquet", CORPUS)
    parquet(folder / "queries.parquet", QUERIES)
    rows = [{"query-id": float(q), "corpus-id": float(q), "score": 1.0} for q in (1, 2)]
    parquet(folder / "qrels.parquet", rows)


def numbers_written_as_text(folder: Path) -> None:
    plain(folder)
    rows = [{"query-id": f"{q}.0", "corpus-id": f"{q}.0", "score": 1.0} for q in (1, 2)]
    (folder / "qrels" / "test.tsv").write_bytes(tsv(rows))


LAYOUTS = (
    plain,
    compressed,
    jsonl_judgements,
    folders_of_parquet,
    default_table_of_the_hub,
    numbers_of_pandas,
    numbers_written_as_text,
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_evaluation_training_and_mining_read_the_same(layout: Any, tmp_path: Path) -> None:
    layout(tmp_path)
    task = load_task(tmp_path)
    assert task.documents == ["Moles dig tunnels", "Owls hunt voles", "Bees make honey"]
    assert (task.document_ids, task.query_ids) == (["1", "2", "3"], ["1", "2"])
    assert (task.qrels.query_R.tolist(), task.qrels.document.tolist()) == ([0, 1], [0, 1])
    assert task.notes == []
    split = None if layout is numbers_of_pandas else "test"
    pairs = load_source(SourceConfig(path=str(tmp_path), split=split))
    assert list(pairs) == [
        Pair("who digs tunnels?", "Moles dig tunnels"),
        Pair("who hunts?", "Owls hunt voles"),
    ]
    corpus = load_corpus(SourceConfig(path=str(tmp_path), document="text"))
    assert [pair.document for pair in corpus] == task.documents


def test_training_gives_the_languages_of_queries(tmp_path: Path) -> None:
    plain(tmp_path)
    (tmp_path / "queries.jsonl").write_bytes(jsonl([row | {"language": "en"} for row in QUERIES]))
    assert load_source(SourceConfig(path=str(tmp_path), split="test")).count("language") == {"en": 2}


def test_both_refuse_an_id_that_is_used_twice_with_the_same_sentence(tmp_path: Path) -> None:
    plain(tmp_path)
    (tmp_path / "corpus.jsonl").write_bytes(jsonl([*CORPUS, CORPUS[0]]))
    complaint = "corpus.jsonl, line 4: the _id '1' is used twice"
    with pytest.raises(UserError, match=complaint):
        load_task(tmp_path)
    with pytest.raises(UserError, match=complaint):
        load_source(SourceConfig(path=str(tmp_path), split="test"))


def test_columns_that_are_not_used_are_noted_but_for_empty_ones(tmp_path: Path) -> None:
    plain(tmp_path)
    rows = [row | {"metadata": {}, "url": "u"} for row in CORPUS]
    (tmp_path / "corpus.jsonl").write_bytes(jsonl(rows))
    assert load_task(tmp_path).notes == ["columns not used: url of corpus"]


def test_tables_of_several_splits_need_the_one_that_is_asked_for(tmp_path: Path) -> None:
    folders_of_parquet(tmp_path)
    part = tmp_path / "queries" / "queries-00000-of-00001.parquet"
    part.rename(part.with_name("dev-00000-of-00001.parquet"))
    assert len(load_task(tmp_path).queries) == 2
    parquet(tmp_path / "queries" / "train.parquet", renamed(QUERIES))
    with pytest.raises(UserError, match=r"queries has several splits \(dev, train\) and none is called test"):
        load_task(tmp_path)
    assert len(load_source(SourceConfig(path=str(tmp_path), split="dev"))) == 1


# ---- identical ids ----


def arguments(folder: Path, judged: dict[str, str]) -> Path:
    """Queries that are themselves documents, as in ArguAna: each answers the other."""
    texts = {"a": "owls hunt at night", "b": "at night owls do hunt voles", "c": "bees make honey"}
    rows = [{"_id": key, "text": text} for key, text in texts.items()]
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_bytes(jsonl(rows))
    (folder / "queries.jsonl").write_bytes(jsonl(rows[:2]))
    qrels = [{"query-id": q, "corpus-id": d, "score": 1} for q, d in judged.items()]
    (folder / "qrels" / "test.tsv").write_bytes(tsv(qrels))
    return folder


def test_a_document_with_the_id_of_the_query_is_no_candidate(tmp_path: Path) -> None:
    task = load_task(arguments(tmp_path, {"a": "b", "b": "a"}))
    assert task.same_ids
    assert task.own_Q is not None
    assert task.own_Q.tolist() == [0, 1]
    assert task.notes == ["2 of 2 queries have the id of a document: no candidate of theirs"]
    scores = evaluate_bm25(task, ["ndcg@10", "recall@1"])
    assert scores is not None
    assert scores.values["ndcg@10"].tolist() == scores.values["recall@1"].tolist() == [1, 1]
    save_task(task, tmp_path / "saved")
    assert load_task(tmp_path / "saved").same_ids
    assert local_task(task).ignore_identical_ids

    def encode(texts: list[str], role: str) -> np.ndarray:
        vocabulary = ["owls", "hunt", "voles", "bees", "honey"]
        return np.array([[text.count(word) + 0.01 for word in vocabulary] for text in texts])

    assert evaluate(task, FunctionEncoder(encode), ["recall@1"]).values["recall@1"].tolist() == [1, 1]


def test_ids_that_only_look_alike_leave_nothing_out(tmp_path: Path) -> None:
    task = load_task(arguments(tmp_path, {"a": "a", "b": "a"}))
    assert not task.same_ids
    assert task.own_Q is None


def test_equal_documents_under_other_ids_are_noted(tmp_path: Path) -> None:
    folder = arguments(tmp_path, {"a": "b", "b": "a"})
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "d", "text": "Owls  HUNT at night"}\n')
    assert load_task(folder).notes == [
        "2 of 2 queries have the id of a document: no candidate of theirs",
        "1 of 4 documents have the text of another one under another id",
        "1 queries are also documents under another id, which stay candidates",
    ]


def test_without_own_keeps_the_order_and_fills_up_with_nothing() -> None:
    ranked_QK = np.array([[4, 2, 3], [1, 0, 2], [0, 1, 3]])
    own_Q = np.array([2, -1, 3])
    assert without_own(ranked_QK, own_Q, 2).tolist() == [[4, 3], [1, 0], [0, 1]]
    assert without_own(ranked_QK, own_Q, 3).tolist() == [[4, 3, -1], [1, 0, 2], [0, 1, -1]]
    assert without_own(ranked_QK, None, 2).tolist() == ranked_QK[:, :2].tolist()
