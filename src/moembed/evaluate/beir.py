"""Retrieval tasks on disk, in BEIR layout.

A task is a folder of three tables: ``corpus`` (columns ``_id``, ``text`` and perhaps ``title``), ``queries``
(``_id``, ``text``) and ``qrels`` (``query-id``, ``corpus-id``, ``score``). They are ``corpus.parquet`` or
``corpus.jsonl``, ``queries.parquet`` or ``queries.jsonl``, and ``qrels.parquet``, ``qrels/test.tsv`` or else
the only ``.tsv`` in ``qrels/``; of several the first is read.

Source: Thakur et al., *BEIR: A Heterogenous Benchmark for Zero-shot Evaluation of Information Retrieval
Models* (2021).
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moembed.evaluate.metrics import Qrels
from moembed.types import UserError

UNKNOWN_SHARE = 0.05  # more judgements than this with unknown ids: the files do not belong together


@dataclass(frozen=True, slots=True)
class RetrievalTask:
    """Queries, documents and, by row number, which documents answer which query.

    ``notes`` says, a sentence each, what was left out of the files.
    """

    name: str
    queries: list[str]
    documents: list[str]
    qrels: Qrels
    query_ids: list[str]
    document_ids: list[str]
    notes: list[str]


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
    documents = _read_texts(_text_file(folder, "corpus"), titled=True)
    queries = _read_texts(_text_file(folder, "queries"))
    grades, notes = _read_grades(_qrels_file(folder), queries, documents)
    answered = {query for (query, _), grade in grades.items() if grade > 0}
    if not answered:
        raise UserError(f"{folder}: no query has a relevant document: a judgement with a score above zero")
    if len(answered) < len(queries):
        missing = len(queries) - len(answered)
        notes.append(f"{missing} of {len(queries)} queries have no relevant document and were left out")
    query_ids = [query for query in queries if query in answered]
    return RetrievalTask(
        name=folder.resolve().name,
        queries=[queries[query] for query in query_ids],
        documents=list(documents.values()),
        qrels=_to_qrels(grades, query_ids, documents),
        query_ids=query_ids,
        document_ids=list(documents),
        notes=notes,
    )


def save_task(task: RetrievalTask, path: str | Path) -> None:
    """Write the folder that ``load_task`` reads back, as JSONL and TSV."""
    folder = Path(path)
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, ids, texts in (
        ("corpus", task.document_ids, task.documents),
        ("queries", task.query_ids, task.queries),
    ):
        rows = ({"_id": i, "text": text} for i, text in zip(ids, texts, strict=True))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    qrels = task.qrels
    query_R = np.repeat(np.arange(len(qrels)), np.diff(qrels.offset))
    judged = zip(query_R, qrels.document, qrels.grade, strict=True)
    lines = "".join(f"{task.query_ids[q]}\t{task.document_ids[d]}\t{grade:g}\n" for q, d, grade in judged)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines, encoding="utf-8")


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


def _read_texts(file: Path, titled: bool = False) -> dict[str, str]:
    """id -> text, in the order of the file."""
    texts: dict[str, str] = {}
    for place, record in _records(file):
        name = _id(record, "_id", place)
        if name in texts:
            raise UserError(f"{place}: the _id {name!r} is used twice")
        text = _text(record, "text", place)
        title = _text(record, "title", place) if titled and record.get("title") else ""
        texts[name] = f"{title} {text}" if title else text
    if not texts:
        raise UserError(f"{file} is empty")
    return texts


def _read_grades(
    file: Path, queries: Collection[str], documents: Collection[str]
) -> tuple[dict[tuple[str, str], float], list[str]]:
    """(query id, document id) -> grade, and notes on what was left out."""
    grades: dict[tuple[str, str], float] = {}
    unknown: list[str] = []
    read = 0
    for place, record in _records(file):
        read += 1
        query, document = _id(record, "query-id", place), _id(record, "corpus-id", place)
        grade = _grade(record, place)
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


def _id(record: dict[str, Any], column: str, place: str) -> str:
    """Some exports hold ids as whole numbers; ``7`` and ``"7"`` are the same id."""
    if type(record.get(column)) is int:
        return str(record[column])
    return _text(record, column, place)


def _text(record: dict[str, Any], column: str, place: str) -> str:
    if column not in record:
        raise UserError(f"{place}: no column {column!r}; the columns are {', '.join(record)}")
    value = record[column]
    if not isinstance(value, str):
        raise UserError(f"{place}: {column!r} must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: {column!r} holds half of a surrogate pair, not a character") from None
    return value


def _grade(record: dict[str, Any], place: str) -> float:
    if "score" not in record:
        raise UserError(f"{place}: no column 'score'; the columns are {', '.join(record)}")
    try:
        grade = float(record["score"])
    except (TypeError, ValueError):
        grade = math.nan
    if not math.isfinite(grade):
        raise UserError(f"{place}: the score {record['score']!r} is not a number")
    return grade


def _records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file, each with its place for messages."""
    read = {".parquet": _parquet, ".jsonl": _jsonl, ".tsv": _tsv}[file.suffix]
    try:
        yield from read(file)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {' '.join(str(error).split())}") from None


def _parquet(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    row = 0
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches():
            for record in batch.to_pylist():
                yield f"{file}, row {row} (counted from 0)", record
                row += 1


def _jsonl(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, line in _lines(file):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise UserError(f"{place} is not a JSON object")
        yield place, record


def _tsv(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    header: list[str] = []
    for place, line in _lines(file):
        cells = line.rstrip("\r\n").split("\t")
        if not header:
            header = cells
        elif len(cells) != len(header):
            raise UserError(f"{place} has {len(cells)} columns, the first line has {len(header)}")
        else:
            yield place, dict(zip(header, cells, strict=True))


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Decoded lines, blank ones left out, without a byte order mark."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            place = f"{file}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{place} is not UTF-8 text") from None
            if text.strip():
                yield place, text
