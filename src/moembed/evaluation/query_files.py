"""Tasks of queries from one's own files: pairs of query and document, or candidates of each query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moembed.data.records import Record
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.metrics import Qrels
from moembed.evaluation.rows import EqualTexts, languages
from moembed.types import UserError


def read_retrieval(path: Path, name: str, rows: Sequence[Record], gold: str) -> RetrievalTask:
    """The rows of a query text, however many, name all documents that answer it."""
    queries, documents = EqualTexts(), EqualTexts()
    answers: dict[int, dict[int, float]] = {}
    for row in rows:
        graded = answers.setdefault(queries.number(row.text("query")), {})
        graded[documents.number(row.text("document"))] = 1.0
    if len(documents.texts) < 2:
        raise UserError(f"{path}: one document leaves nothing to choose from")
    return _queries(name, "retrieval", rows, queries, documents, answers)


def read_reranking(path: Path, name: str, rows: Sequence[Record], gold: str) -> RetrievalTask:
    """A query that occurs twice is asked of the candidates of both rows."""
    queries, documents = EqualTexts(), EqualTexts()
    answers: dict[int, dict[int, float]] = {}
    both = 0
    for row in rows:
        graded = answers.setdefault(queries.number(row.text("query")), {})
        positive = dict.fromkeys(map(documents.number, row.texts("positive")), 1.0)
        negative = dict.fromkeys(map(documents.number, row.texts("negative")), 0.0)
        both += len(positive.keys() & negative.keys())
        graded |= positive
        graded |= {number: graded.get(number, 0.0) for number in negative}
    # a query without a relevant text, or without another one, says nothing
    asked = {query: graded for query, graded in answers.items() if set(graded.values()) == {0.0, 1.0}}
    if not asked:
        raise UserError(f"{path}: no query has a text in 'positive' and another one in 'negative'")
    task = _queries(name, "reranking", rows, queries, documents, asked)
    if both:
        task.notes.append(f"{both} negatives are positives of the same query and count as such")
    if left_out := len(answers) - len(asked):
        task.notes.append(
            f"{left_out} of {len(answers)} queries lack a relevant text or one that is not, and were left out"
        )
    return task


def _queries(
    name: str,
    kind: str,
    rows: Sequence[Record],
    queries: EqualTexts,
    documents: EqualTexts,
    answers: dict[int, dict[int, float]],
) -> RetrievalTask:
    """A task whose ids are numbers, of queries and documents in the order of their first appearance."""
    language: dict[int, str] = {}
    for row, known in zip(rows, languages(name, rows), strict=True):
        language.setdefault(queries.number(row.text("query")), known)
    found = dict.fromkeys(number for graded in answers.values() for number in graded)
    document_row = {number: row for row, number in enumerate(found)}
    judged = [
        (row, document_row[number], grade)
        for row, graded in enumerate(answers.values())
        for number, grade in graded.items()
    ]
    query_R, document_R, grade_R = map(np.array, zip(*judged, strict=True))
    repeated = len(rows) - len(queries.texts)
    note = f"{repeated} of {len(rows)} rows repeat a query and were merged with its first row"
    return RetrievalTask(
        name=name,
        queries=[queries.texts[number] for number in answers],
        documents=[documents.texts[number] for number in document_row],
        qrels=Qrels.from_judgements(query_R, document_R, grade_R, len(answers)),
        query_ids=[str(row) for row in range(len(answers))],
        document_ids=[str(row) for row in range(len(document_row))],
        notes=[note] if repeated else [],
        language={str(row): language[number] for row, number in enumerate(answers) if language[number]},
        kind=kind,
    )
