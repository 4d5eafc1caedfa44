"""Tasks from one's own files: a folder in BEIR layout, or a file whose columns say what it is good for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from moembed.data.columns import GRADES, ColumnUse
from moembed.data.files import KNOWN, File
from moembed.data.records import Record, records
from moembed.data.text_key import text_key
from moembed.evaluation.beir import RetrievalTask, load_task
from moembed.evaluation.query_files import read_reranking, read_retrieval
from moembed.evaluation.rows import languages
from moembed.types import UserError

# The first kind whose columns a file all has is the kind of its task; sentence pairs: see ``_kind``.
COLUMNS = {
    "sts": ("sentence1", "sentence2", "score"),
    "pair_classification": ("sentence1", "sentence2", "labels"),
    "bitext": ("sentence1", "sentence2"),
    "classification": ("text", "label", "split"),
    "clustering": ("text", "label"),
    "reranking": ("query", "positive", "negative"),
    "retrieval": ("query", "document"),
}
_NAMES = {"sent1": "sentence1", "sent2": "sentence2"}  # in some data sets of MTEB
_GRADED = re.compile("|".join([*sorted(GRADES), ".*_(score|label)"]), re.IGNORECASE)
SCORES, LABELS = ("score", "similarity_score"), ("labels", "label")  # of sentence pairs, in this order


@dataclass(frozen=True, slots=True)
class PairTask:
    """Two sentences a row: of "sts" with the gold similarity of each pair, of "pair_classification" with its
    label, 1 or 0, and of "bitext" translations.

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

    ===================  =====================================================================================
    retrieval            ``query, document``: every distinct document of the file is a candidate for every
                         query
    reranking            ``query, positive, negative``: lists of texts, the candidates of this query alone
    sts                  ``sentence1, sentence2`` and ``score`` or ``similarity_score`` (or a ``label`` of
                         other numbers than 0 and 1): any scale, higher is more alike
    pair_classification  ``sentence1, sentence2`` and ``labels`` or ``label``: 1 or 0
    bitext               ``sentence1, sentence2`` and perhaps ``pair``, within which sentences are matched
    classification       ``text, label, split``: split is train or test; other rows are left out and noted
    clustering           ``text, label``
    ===================  =====================================================================================

    A column ``language`` may stand in all of them; without it the language is what the name ends in
    (``sts-de.csv``), if that is two letters. Classification teaches and tests within a language.

    Raises:
        UserError: nothing there, an unknown format or set of columns, or rows that make no task: the message
            names the row.
    """
    path = Path(path)
    if path.is_dir():
        return load_task(path)
    file = File(LocalFileSystem(), str(path))
    if not path.exists():
        raise UserError(f"no such task, neither a folder nor a file: {path}")
    if not file.format:
        raise UserError(f"{path} is no task: it must be a folder in BEIR layout or a file ending in {KNOWN}")
    rows = _spread(list(records([file])))
    if not rows:
        raise UserError(f"{path} is empty")
    kind, gold = _kind(path, rows)
    task = _READERS[kind](path, file.stem, rows, gold)
    task.notes.extend(_columns(kind, gold, rows, quotes=file.format == "tsv"))
    return task


def _spread(rows: list[Record]) -> list[Record]:
    """Rows whose ``sentence1`` is a list, as in older data sets of MTEB, as a row for each sentence."""
    rows = [
        replace(row, cells={_NAMES.get(name, name): value for name, value in row.cells.items()})
        for row in rows
    ]
    if not rows or not isinstance(rows[0].cells.get("sentence1"), list):
        return rows
    spread = []
    for row in rows:
        lists = {column: value for column, value in row.cells.items() if isinstance(value, list)}
        if len(set(map(len, lists.values()))) > 1:
            sizes = ", ".join(f"{column} {len(value)}" for column, value in lists.items())
            raise UserError(f"{row.place}: the lists have different lengths: {sizes}")
        for number, cells in enumerate(zip(*lists.values(), strict=True), start=1):
            one = {**row.cells, **dict(zip(lists, cells, strict=True))}
            spread.append(Record(f"{row.place}, entry {number}", one, row.row_number))
    return spread


def _kind(path: Path, rows: Sequence[Record]) -> tuple[str, str]:
    """The kind of the task, and the column of the gold scores or labels of sentence pairs ("" of others)."""
    columns = rows[0].cells.keys()
    if {"sentence1", "sentence2"} <= columns:
        if gold := next((column for column in SCORES if column in columns), None):
            return "sts", gold
        if gold := next((column for column in LABELS if column in columns), None):
            return ("pair_classification" if {row.number(gold) for row in rows} <= {0, 1} else "sts"), gold
        if graded := next((column for column in columns if _GRADED.fullmatch(column)), None):
            raise UserError(
                f"{path} grades its sentence pairs in {graded}, and pairs of translations have no grades: "
                "call the column score (any scale, higher is more alike) or label (1 or 0), or take it out"
            )
        return "bitext", ""
    for kind, needed in COLUMNS.items():
        if set(needed) <= columns:
            return kind, ""
    kinds = "; ".join(f"{kind}: {', '.join(needed)}" for kind, needed in COLUMNS.items())
    raise UserError(
        f"{path} has the columns {', '.join(columns)}, which make no task; a task needs one of: {kinds}"
    )


def _columns(kind: str, gold: str, rows: Sequence[Record], quotes: bool) -> list[str]:
    """Notes on the columns of a file that are not used, or whose texts look wrong."""
    use = ColumnUse()
    use.used |= {gold, "language"} | ({"pair"} if kind == "bitext" else set())
    read = [gold if column in SCORES + LABELS and gold else column for column in COLUMNS[kind]]
    for row in rows:
        use.see(row.cells)
        for column in read:
            use.use(column, row.cells.get(column), quotes)
    graded = GRADES.intersection(use.unused) if kind in ("retrieval", "reranking") else ()
    return use.notes({column: f"every row counts, whatever its {column}" for column in graded})


# ---- pairs -------------------------------------------------------------------------------------------------


def _sts(path: Path, name: str, rows: Sequence[Record], gold: str) -> PairTask:
    gold_Q = np.array([row.number(gold) for row in rows])
    if (gold_Q == gold_Q[0]).all():
        raise UserError(f"{path}: every {gold} is {gold_Q[0]:g}, and nothing correlates with a constant")
    read_as = f"{gold} has other numbers than 0 and 1 and is read as a similarity: higher is more alike"
    notes = [read_as] if gold in LABELS else []
    return PairTask(name, "sts", *_sentences(rows), gold_Q, languages(name, rows), notes)


def _pair_classification(path: Path, name: str, rows: Sequence[Record], gold: str) -> PairTask:
    gold_Q = np.array([row.number(gold) for row in rows])
    if (gold_Q == gold_Q[0]).all():
        raise UserError(f"{path}: every one of {gold} is {gold_Q[0]:g}: there is nothing to tell apart")
    return PairTask(name, "pair_classification", *_sentences(rows), gold_Q, languages(name, rows), [])


def _bitext(path: Path, name: str, rows: Sequence[Record], gold: str) -> PairTask:
    first, second = _sentences(rows)
    named = "pair" in rows[0].cells
    pairs = [row.text("pair") for row in rows] if named else languages(name, rows)
    candidates: dict[str, set[bytes]] = {}
    for pair, text in zip(pairs, second, strict=True):
        candidates.setdefault(pair, set()).add(text_key(text))
    for pair, texts in candidates.items():
        if len(texts) < 2:
            within = f" of the pair {pair!r}" if named else ""
            raise UserError(f"{path}: one sentence2{within} leaves nothing to choose from")
    return PairTask(name, "bitext", first, second, np.empty(0), pairs, [])


def _sentences(rows: Sequence[Record]) -> tuple[list[str], list[str]]:
    return [row.text("sentence1") for row in rows], [row.text("sentence2") for row in rows]


# ---- labels ------------------------------------------------------------------------------------------------


def _classification(path: Path, name: str, rows: Sequence[Record], gold: str) -> LabelTask:
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


def _clustering(path: Path, name: str, rows: Sequence[Record], gold: str) -> LabelTask:
    task = _labelled(name, "clustering", rows, [False] * len(rows))
    if len(set(task.labels)) < 2:
        raise UserError(f"{path}: clusters need at least two labels, all texts have {task.labels[0]!r}")
    return task


def _labelled(name: str, kind: str, rows: Sequence[Record], train: list[bool]) -> LabelTask:
    texts, labels = [row.text("text") for row in rows], [row.label("label") for row in rows]
    return LabelTask(name, kind, texts, labels, np.array(train), languages(name, rows), [])


_READERS: dict[str, Callable[[Path, str, Sequence[Record], str], Task]] = {
    "sts": _sts,
    "pair_classification": _pair_classification,
    "bitext": _bitext,
    "classification": _classification,
    "clustering": _clustering,
    "reranking": read_reranking,
    "retrieval": read_retrieval,
}
