"""Tasks from one's own files: a folder in BEIR layout, or a file whose columns say what it is good for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moembed.data.files import KNOWN
from moembed.evaluation.beir import RetrievalTask, load_task
from moembed.evaluation.metrics import Qrels
from moembed.evaluation.rows import Record, language_of, local, numbered, records
from moembed.types import UserError

# The first kind whose columns a file all has is the kind of its task.
COLUMNS = {
    "sts": ("sentence1", "sentence2", "score"),
    "bitext": ("sentence1", "sentence2"),
    "classification": ("text", "label", "split"),
    "clustering": ("text", "label"),
    "reranking": ("query", "positive", "negative"),
    "retrieval": ("query", "document"),
}


@dataclass(frozen=True, slots=True)
class PairTask:
    """Two sentences a row: of "sts" with the gold similarity of each pair, of "bitext" translations.

    The ``language`` of a bitext row is its pair of languages (``deu-eng``); only within it is matched.
    """

    name: str
    kind: str
    sentence1: list[str]
    sentence2: list[str]
    gold_Q: np.ndarray  # empty for bitext
    language: list[str]
    notes: list[str]

    def __len__(self) -> int:
        return len(self.sentence1)


@dataclass(frozen=True, slots=True)
class LabelTask:
    """Texts with labels. Of "classification" the rows of ``train_N`` teach, and the others are its items."""

    name: str
    kind: str
    texts: list[str]
    labels: list[str]
    train_N: np.ndarray  # bool; all False for clustering
    language: list[str]
    notes: list[str]

    def __len__(self) -> int:
        return int((~self.train_N).sum())


Task = RetrievalTask | PairTask | LabelTask


def load_any(path: str | Path) -> Task:
    """The task that a folder in BEIR layout holds, or a file (JSONL, CSV, TSV or Parquet) by its columns.

    ==============  ==========================================================================================
    retrieval       ``query, document``: every distinct document of the file is a candidate for every query
    reranking       ``query, positive, negative``: lists of texts, the candidates of this query alone
    sts             ``sentence1, sentence2, score``: any scale, higher is more alike
    bitext          ``sentence1, sentence2`` and perhaps ``pair``, within which sentences are matched
    classification  ``text, label, split``: split is train or test; other rows are left out and noted
    clustering      ``text, label``
    ==============  ==========================================================================================

    A column ``language`` may stand in all of them; without it the language is what the name ends in
    (``sts-de.csv``), if that is two letters. Classification teaches and tests within a language.

    Raises:
        UserError: nothing there, an unknown format or set of columns, or rows that make no task: the message
            names the row.
    """
    path = Path(path)
    if path.is_dir():
        return load_task(path)
    file = local(path)
    if not path.exists():
        raise UserError(f"no such task, neither a folder nor a file: {path}")
    if not file.format:
        raise UserError(f"{path} is no task: it must be a folder in BEIR layout or a file ending in {KNOWN}")
    rows = list(records(path))
    if not rows:
        raise UserError(f"{path} is empty")
    return _READERS[_kind(path, rows[0])](path, file.stem, rows)


def _kind(path: Path, row: Record) -> str:
    for kind, columns in COLUMNS.items():
        if set(columns) <= row.cells.keys():
            return kind
    kinds = "; ".join(f"{kind}: {', '.join(columns)}" for kind, columns in COLUMNS.items())
    raise UserError(
        f"{path} has the columns {', '.join(row.cells)}, which make no task; a task needs one of: {kinds}"
    )


def _languages(name: str, rows: Sequence[Record]) -> list[str]:
    return [row.language(language_of(name)) for row in rows]


# ---- pairs -------------------------------------------------------------------------------------------------


def _sts(path: Path, name: str, rows: Sequence[Record]) -> PairTask:
    gold_Q = np.array([row.number("score") for row in rows])
    if (gold_Q == gold_Q[0]).all():
        raise UserError(f"{path}: every score is {gold_Q[0]:g}, and nothing correlates with a constant")
    return PairTask(name, "sts", *_sentences(rows), gold_Q, _languages(name, rows), [])


def _bitext(path: Path, name: str, rows: Sequence[Record]) -> PairTask:
    first, second = _sentences(rows)
    named = "pair" in rows[0].cells
    pairs = [row.text("pair") for row in rows] if named else _languages(name, rows)
    candidates: dict[str, set[str]] = {}
    for pair, text in zip(pairs, second, strict=True):
        candidates.setdefault(pair, set()).add(text)
    for pair, texts in candidates.items():
        if len(texts) < 2:
            within = f" of the pair {pair!r}" if named else ""
            raise UserError(f"{path}: one sentence2{within} leaves nothing to choose from")
    return PairTask(name, "bitext", first, second, np.empty(0), pairs, [])


def _sentences(rows: Sequence[Record]) -> tuple[list[str], list[str]]:
    return [row.text("sentence1") for row in rows], [row.text("sentence2") for row in rows]


# ---- labels ------------------------------------------------------------------------------------------------


def _classification(path: Path, name: str, rows: Sequence[Record]) -> LabelTask:
    used = [row for row in rows if row.text("split") in ("train", "test")]
    if not used:
        raise UserError(f"{path}: no row has the split train or test")
    task = _labelled(name, "classification", used, [row.text("split") == "train" for row in used])
    if others := len(rows) - len(used):
        task.notes.append(f"{others} of {len(rows)} rows are of another split than train and test: left out")
    for language in dict.fromkeys(task.language):
        _check_language(path, task, language)
    return task


def _check_language(path: Path, task: LabelTask, language: str) -> None:
    where, within = (f"{path}, language {language!r}", f" in {language!r}") if language else (str(path), "")
    rows = zip(task.labels, task.train_N, task.language, strict=True)
    split = [(label, train) for label, train, other in rows if other == language]
    taught = {label for label, train in split if train}
    tested = [label for label, train in split if not train]
    if not taught or not tested:
        raise UserError(f"{where}: no {'test' if taught else 'train'} rows: classification needs both splits")
    if len(taught) < 2:
        raise UserError(f"{where}: all train rows have the label {taught.pop()!r}: nothing to tell apart")
    if unheard := sum(label not in taught for label in tested):
        task.notes.append(
            f"{unheard} of {len(tested)} test texts{within} have a label that no train row has: "
            "they count as wrong"
        )


def _clustering(path: Path, name: str, rows: Sequence[Record]) -> LabelTask:
    task = _labelled(name, "clustering", rows, [False] * len(rows))
    if len(set(task.labels)) < 2:
        raise UserError(f"{path}: clusters need at least two labels, all texts have {task.labels[0]!r}")
    return task


def _labelled(name: str, kind: str, rows: Sequence[Record], train: list[bool]) -> LabelTask:
    texts, labels = [row.text("text") for row in rows], [row.label("label") for row in rows]
    return LabelTask(name, kind, texts, labels, np.array(train), _languages(name, rows), [])


# ---- queries -----------------------------------------------------------------------------------------------


def _retrieval(path: Path, name: str, rows: Sequence[Record]) -> RetrievalTask:
    """The rows of a query text, however many, name all documents that answer it."""
    answers: dict[str, dict[str, float]] = {}
    for row in rows:
        answers.setdefault(row.text("query"), {})[row.text("document")] = 1.0
    task = _queries(name, "retrieval", rows, answers)
    if len(task.documents) < 2:
        raise UserError(f"{path}: one document leaves nothing to choose from")
    return task


def _reranking(path: Path, name: str, rows: Sequence[Record]) -> RetrievalTask:
    """A query that occurs twice is asked of the candidates of both rows."""
    answers: dict[str, dict[str, float]] = {}
    both = 0
    for row in rows:
        positive, negative = row.texts("positive"), row.texts("negative")
        wrong = [text for text in negative if text not in positive]
        both += len(negative) - len(wrong)
        if not wrong:
            raise UserError(f"{row.place}: every text of 'negative' is one of 'positive' too")
        graded = answers.setdefault(row.text("query"), {})
        graded |= dict.fromkeys(positive, 1.0)
        graded |= {text: graded.get(text, 0.0) for text in wrong}
    task = _queries(name, "reranking", rows, answers)
    if both:
        task.notes.append(f"{both} negatives are positives of the same query and count as such")
    return task


def _queries(
    name: str, kind: str, rows: Sequence[Record], answers: dict[str, dict[str, float]]
) -> RetrievalTask:
    """A task whose ids are numbers, of queries and documents in the order of their first appearance."""
    language: dict[str, str] = {}
    for row, known in zip(rows, _languages(name, rows), strict=True):
        language.setdefault(row.cells["query"], known)
    document_row = numbered(text for graded in answers.values() for text in graded)
    judged = [
        (query, document_row[text], grade)
        for query, graded in enumerate(answers.values())
        for text, grade in graded.items()
    ]
    query_R, document_R, grade_R = map(np.array, zip(*judged, strict=True))
    repeated = len(rows) - len(answers)
    note = f"{repeated} of {len(rows)} rows repeat a query and were merged with its first row"
    return RetrievalTask(
        name=name,
        queries=list(answers),
        documents=list(document_row),
        qrels=Qrels.from_judgements(query_R, document_R, grade_R, len(answers)),
        query_ids=[str(row) for row in range(len(answers))],
        document_ids=[str(row) for row in range(len(document_row))],
        notes=[note] if repeated else [],
        language={str(row): language[text] for row, text in enumerate(answers) if language[text]},
        kind=kind,
    )


_READERS: dict[str, Callable[[Path, str, Sequence[Record]], Task]] = {
    "sts": _sts,
    "bitext": _bitext,
    "classification": _classification,
    "clustering": _clustering,
    "reranking": _reranking,
    "retrieval": _retrieval,
}
