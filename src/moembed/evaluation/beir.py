"""Retrieval tasks on disk, in the layout of `moembed.data.beir`."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moembed.data.beir import BeirFolder, document_text, known_id, open_beir
from moembed.data.columns import ColumnUse
from moembed.data.text_key import text_number
from moembed.evaluation.metrics import Qrels
from moembed.evaluation.rows import language_of
from moembed.files import write_text
from moembed.types import UserError

UNKNOWN_SHARE = 0.05  # more judgements than this with unknown ids: the files do not belong together


@dataclass(frozen=True, slots=True)
class RetrievalTask:
    """Queries, documents and, by row number, which documents answer which query.

    Of ``kind`` "retrieval" every document is a candidate for every query, but for the one with the id of the
    query where ``same_ids`` is True; of "reranking" only those judged for it are. ``notes`` says, a sentence
    each, what was left out of the files. ``language`` is by query id, of the queries whose language is known.
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
    same_ids: bool = False  # queries and documents with the same id are the same text

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def own_Q(self) -> np.ndarray | None:
        """Of every query the row of the document with its id, -1 where there is none; None: all compete."""
        if not self.same_ids:
            return None
        row = {name: number for number, name in enumerate(self.document_ids)}
        return np.array([row.get(query, -1) for query in self.query_ids])


def without_own(ranked_QK: np.ndarray, own_Q: np.ndarray | None, k: int) -> np.ndarray:
    """The first ``k`` places of rankings without the query's own document, -1 where they are shorter.

    BEIR's protocol ("ignore identical ids"): rank ``k + 1`` documents first. None: all documents compete.
    """
    if own_Q is None:
        return ranked_QK[:, :k]
    foreign_QK = ranked_QK != own_Q[:, None]
    order_QK = np.argsort(~foreign_QK, axis=1, kind="stable")
    return np.take_along_axis(np.where(foreign_QK, ranked_QK, -1), order_QK, axis=1)[:, :k]


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
        what = "is a file, and a task here is a folder in BEIR layout" if folder.exists() else ""
        raise UserError(f"{folder} {what}" if what else f"no such task folder: {folder}")
    name = folder.resolve().name
    tables = open_beir(folder)
    columns = {"corpus": ColumnUse(), "queries": ColumnUse()}
    documents = {key: document_text(row) for key, row in tables.documents(columns["corpus"])}
    asked: dict[str, str] = {}
    language: dict[str, str] = {}
    for key, row in tables.questions(columns["queries"]):
        asked[key] = row.text("text", may_be_empty=True)
        language[key] = row.language(language_of(name))
    grades, notes = _read_grades(tables, asked, documents)
    answered = {query for (query, _), grade in grades.items() if grade > 0}
    if not answered:
        raise UserError(f"{folder}: no query has a relevant document: a judgement with a score above zero")
    if missing := len(asked) - len(answered):
        notes.append(f"{missing} of {len(asked)} queries have no relevant document and were left out")
    query_ids = [query for query in asked if query in answered]
    notes += [*tables.notes, *_unused_columns(columns)]
    same_ids = _same_ids(query_ids, documents, grades)
    notes += _equal_texts({query: asked[query] for query in query_ids}, documents, same_ids)
    return RetrievalTask(
        name=name,
        queries=[asked[query] for query in query_ids],
        documents=list(documents.values()),
        qrels=_to_qrels(grades, query_ids, documents),
        query_ids=query_ids,
        document_ids=list(documents),
        notes=notes,
        language={query: language[query] for query in query_ids if language[query]},
        same_ids=same_ids,
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
    write_text(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\n" + lines)


def _write_jsonl(file: Path, rows: list[dict[str, str]]) -> None:
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _unused_columns(columns: dict[str, ColumnUse]) -> list[str]:
    known = {"corpus": {"_id", "id", "title", "text"}, "queries": {"_id", "id", "text", "language"}}
    unused = [
        f"{name} of {table}"
        for table, use in columns.items()
        for name in use.seen
        if name not in known[table]
    ]
    return [f"columns not used: {', '.join(unused)}"] if unused else []


def _same_ids(
    query_ids: Sequence[str], documents: Collection[str], grades: dict[tuple[str, str], float]
) -> bool:
    """Whether a query and the document with its id are one text, as in ArguAna and Quora.

    They are not where such a document answers its query: then the ids are numbers that mean nothing together.
    """
    shared = [query for query in query_ids if query in documents]
    return bool(shared) and not any(grades.get((query, query), 0) > 0 for query in shared)


def _equal_texts(queries: dict[str, str], documents: dict[str, str], same_ids: bool) -> list[str]:
    """Notes on texts that occur under several ids, which one id alone cannot tell apart."""
    notes = []
    shared = [query for query in queries if query in documents] if same_ids else []
    if shared:
        notes.append(
            f"{len(shared)} of {len(queries)} queries have the id of a document: no candidate of theirs"
        )
    number_N = np.array([text_number(text) for text in documents.values()], dtype=np.int64)
    if repeated := len(number_N) - len(np.unique(number_N)):
        of = f"{repeated} of {len(documents)}"
        notes.append(f"{of} documents have the text of another one under another id")
    if shared:
        ids_of: dict[int, list[str]] = {}
        for name, number in zip(documents, number_N.tolist(), strict=True):
            ids_of.setdefault(number, []).append(name)
        there = {query: ids_of.get(text_number(text), []) for query, text in queries.items()}
        if elsewhere := sum(any(name != query for name in names) for query, names in there.items()):
            notes.append(f"{elsewhere} queries are also documents under another id, which stay candidates")
    return notes


def _read_grades(
    tables: BeirFolder, queries: Collection[str], documents: Collection[str]
) -> tuple[dict[tuple[str, str], float], list[str]]:
    """(query id, document id) -> grade, and notes on what was left out."""
    grades: dict[tuple[str, str], float] = {}
    unknown: list[str] = []
    read = 0
    for judgement in tables.judgements():
        read += 1
        query, document = known_id(judgement.query, queries), known_id(judgement.document, documents)
        if query is None or document is None:
            unknown.append(judgement.document if query is not None else judgement.query)
        else:
            grade = judgement.grade
            grades[query, document] = max(grade, grades.get((query, document), grade))
    notes = []
    if unknown:
        names = ", ".join(map(repr, list(dict.fromkeys(unknown))[:3]))
        message = f"{len(unknown)} of {read} judgements name unknown queries or documents (such as {names})"
        if len(unknown) > UNKNOWN_SHARE * read:
            raise UserError(f"{tables.qrels[0]}: {message}: does it belong to this corpus and these queries?")
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
