"""Retrieval tasks on disk, in BEIR layout.

A task is a folder of three tables: ``corpus`` (columns ``_id``, ``text`` and perhaps ``title``), ``queries``
(``_id``, ``text`` and perhaps ``language``) and ``qrels`` (``query-id``, ``corpus-id``, ``score``). They are
``corpus.parquet`` or ``corpus.jsonl``, ``queries.parquet`` or ``queries.jsonl``, and ``qrels.parquet``,
``qrels/test.tsv`` or else the only ``.tsv`` in ``qrels/``; of several the first is read.

Source: Thakur et al., *BEIR: A Heterogenous Benchmark for Zero-shot Evaluation of Information Retrieval
Models* (2021).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moembed.evaluation.metrics import Qrels
from moembed.evaluation.rows import Record, language_of, records
from moembed.types import UserError

UNKNOWN_SHARE = 0.05  # more judgements than this with unknown ids: the files do not belong together


@dataclass(frozen=True, slots=True)
class RetrievalTask:
    """Queries, documents and, by row number, which documents answer which query.

    Of ``kind`` "retrieval" every document is a candidate for every query; of "reranking" only those judged
    for it are. ``notes`` says, a sentence each, what was left out of the files. ``language`` is by query id,
    of the queries whose language is known.
    """

    name: str
    queries: list[str]
    documents: list[str]
    qrels: Qrels
    query_ids: list[str]
    document_ids: list[str]
    notes: list[str]
    language: dict[str, str] = field(default_factory=dict)
    kind: str = "retrieval"

    def __len__(self) -> int:
        return len(self.queries)


def load_task(path: str | Path) -> RetrievalTask:
    """Read a task folder; the text of a document is its title, if it has one, a blank and its text.

    Queries without a relevant document and judgements with unknown ids are left out and noted; of repeated
    judgements the highest grade counts.

    Raises:
        UserError: files or columns missing or unreadable, texts that are not text, scores that are not
            numbers, an id used twice, no documents or queries, nothing relevant, or more than 5 % of the
            judgements with unknown ids.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"no such task folder: {folder}")
    name = folder.resolve().name
    documents = {key: _document(row) for key, row in _with_ids(_text_file(folder, "corpus"))}
    asked: dict[str, str] = {}
    language: dict[str, str] = {}
    for key, row in _with_ids(_text_file(folder, "queries")):
        asked[key] = row.text("text", may_be_empty=True)
        language[key] = row.language(language_of(name))
    grades, notes = _read_grades(_qrels_file(folder), asked, documents)
    answered = {query for (query, _), grade in grades.items() if grade > 0}
    if not answered:
        raise UserError(f"{folder}: no query has a relevant document: a judgement with a score above zero")
    if missing := len(asked) - len(answered):
        notes.append(f"{missing} of {len(asked)} queries have no relevant document and were left out")
    query_ids = [query for query in asked if query in answered]
    return RetrievalTask(
        name=name,
        queries=[asked[query] for query in query_ids],
        documents=list(documents.values()),
        qrels=_to_qrels(grades, query_ids, documents),
        query_ids=query_ids,
        document_ids=list(documents),
        notes=notes,
        language={query: language[query] for query in query_ids if language[query]},
    )


def save_task(task: RetrievalTask, path: str | Path) -> None:
    """Write the folder that ``load_task`` reads back, as JSONL and TSV."""
    folder = Path(path)
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    documents = zip(task.document_ids, task.documents, strict=True)
    _write_jsonl(folder / "corpus.jsonl", [{"_id": key, "text": text} for key, text in documents])
    queries = zip(task.query_ids, task.queries, strict=True)
    rows = [{"_id": key, "text": text, "language": task.language.get(key, "")} for key, text in queries]
    _write_jsonl(folder / "queries.jsonl", rows)
    qrels = task.qrels
    judged = zip(qrels.query_R, qrels.document, qrels.grade, strict=True)
    lines = "".join(f"{task.query_ids[q]}\t{task.document_ids[d]}\t{grade:g}\n" for q, d, grade in judged)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines, encoding="utf-8")


def _write_jsonl(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _text_file(folder: Path, name: str) -> Path:
    for file in (folder / f"{name}.parquet", folder / f"{name}.jsonl"):
        if file.exists():
            return file
    raise UserError(f"{folder} has neither {name}.parquet nor {name}.jsonl")


def _qrels_file(folder: Path) -> Path:
    for file in (folder / "qrels.parquet", folder / "qrels" / "test.tsv"):
        if file.exists():
            return file
    found = sorted((folder / "qrels").glob("*.tsv"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(f"{folder / 'qrels'} has several splits ({names}) and none is test.tsv: keep one")
    if not found:
        raise UserError(f"{folder} has neither qrels.parquet nor qrels/test.tsv")
    return found[0]


def _with_ids(file: Path) -> Iterator[tuple[str, Record]]:
    """The rows of a table, each with its id."""
    seen: set[str] = set()
    for row in records(file):
        key = row.label("_id")
        if key in seen:
            raise UserError(f"{row.place}: the _id {key!r} is used twice")
        seen.add(key)
        yield key, row
    if not seen:
        raise UserError(f"{file} is empty")


def _document(row: Record) -> str:
    text = row.text("text", may_be_empty=True)
    return f"{row.text('title', may_be_empty=True)} {text}" if row.cells.get("title") else text


def _read_grades(
    file: Path, queries: Collection[str], documents: Collection[str]
) -> tuple[dict[tuple[str, str], float], list[str]]:
    """(query id, document id) -> grade, and notes on what was left out."""
    grades: dict[tuple[str, str], float] = {}
    unknown: list[str] = []
    read = 0
    for row in records(file):
        read += 1
        query, document, grade = row.label("query-id"), row.label("corpus-id"), row.number("score")
        if query not in queries or document not in documents:
            unknown.append(document if query in queries else query)
        else:
            grades[query, document] = max(grade, grades.get((query, document), grade))
    notes = []
    if unknown:
        names = ", ".join(map(repr, list(dict.fromkeys(unknown))[:3]))
        message = f"{len(unknown)} of {read} judgements name unknown queries or documents (such as {names})"
        if len(unknown) > UNKNOWN_SHARE * read:
            raise UserError(f"{file}: {message}: does it belong to this corpus and these queries?")
        notes.append(f"{message} and were left out")
    if repeated := read - len(unknown) - len(grades):
        notes.append(f"{repeated} repeated judgements were merged, the highest grade counts")
    return grades, notes


def _to_qrels(
    grades: dict[tuple[str, str], float], query_ids: list[str], document_ids: Collection[str]
) -> Qrels:
    query_row = {name: row for row, name in enumerate(query_ids)}
    document_row = {name: row for row, name in enumerate(document_ids)}
    judged = [
        (query_row[query], document_row[document], grade)
        for (query, document), grade in grades.items()
        if query in query_row
    ]
    query_R, document_R, grade_R = map(np.array, zip(*judged, strict=True))
    return Qrels.from_judgements(query_R, document_R, grade_R, len(query_ids))
