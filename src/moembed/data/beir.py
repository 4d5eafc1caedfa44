"""Folders in BEIR layout, read the same way by training, mining, overlap and evaluation.

Three tables: ``corpus`` (``_id``, ``text`` and perhaps ``title``), ``queries`` (``_id``, ``text`` and perhaps
``language``) and ``qrels`` (``query-id``, ``corpus-id``, ``score``), each in any format of
`moembed.data.files`. A table is a file, or a folder of the files of its splits (``qrels/test.tsv``,
``corpus/test-00000-of-00001.parquet``); the id may be called ``id``, as in the data sets of MTEB.

Source: Thakur et al., *BEIR: A Heterogenous Benchmark for Zero-shot Evaluation of Information Retrieval
Models* (2021).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from moembed.data.columns import ColumnUse
from moembed.data.files import File, find
from moembed.data.readers import Choose, Numbered, where
from moembed.data.records import Record, records
from moembed.types import UserError

_PART = re.compile(r"-\d+-of-\d+$")  # of the name of a file that holds a part of a split
_DEFAULT_TABLE = "data"  # the hub's folder of a data set's default table: of mteb's sets the judgements
_FORMATS = ("parquet", "jsonl", "tsv", "csv")  # of a table that lies there twice, the first is read


class Judgement(NamedTuple):
    place: str
    number: int
    query: str
    document: str
    grade: float


@dataclass(frozen=True, slots=True)
class BeirFolder:
    """The files of the three tables; ``notes`` says, a sentence each, which others lie there unread."""

    corpus: tuple[File, ...]
    queries: tuple[File, ...]
    qrels: tuple[File, ...]
    notes: tuple[str, ...] = ()

    def documents(self, columns: ColumnUse | None = None) -> Iterator[tuple[str, Record]]:
        """Id and row of every document; ``document_text`` is its text. ``columns`` is told what there is."""
        return _with_ids(self.corpus, columns)

    def questions(self, columns: ColumnUse | None = None) -> Iterator[tuple[str, Record]]:
        """Id and row of every query."""
        return _with_ids(self.queries, columns)

    def judgements(self) -> Iterator[Judgement]:
        """Every judgement, with the ids as they stand there: see ``known_id``."""
        for row in records(self.qrels):
            yield Judgement(
                row.place, row.row_number, row.label("query-id"), row.label("corpus-id"), row.number("score")
            )

    def stamp(self) -> list[str]:
        """What changes when the rows do."""
        return [part for file in (*self.queries, *self.corpus, *self.qrels) for part in file.stamp()]


@dataclass(frozen=True, slots=True)
class BeirShard:
    """Pairs (query, document) of every judgement above zero; the judged texts alone are held in memory."""

    folder: BeirFolder

    def rows(self, choose: Choose | None = None) -> Iterator[Numbered]:
        judged = [judgement for judgement in self.folder.judgements() if judgement.grade > 0]
        wanted = {judgement.query for judgement in judged}
        queries = {
            key: _text_or_problem(row, "query")
            for key, row in self.folder.questions()
            if not wanted.isdisjoint(_spellings(key))
        }
        wanted = {judgement.document for judgement in judged}
        documents = {
            key: _text_or_problem(row, "document")
            for key, row in self.folder.documents()
            if not wanted.isdisjoint(_spellings(key))
        }
        for judgement in judged:
            number = judgement.number
            query, document = known_id(judgement.query, queries), known_id(judgement.document, documents)
            if query is None:
                yield number, f"the queries have no id {judgement.query!r}"
            elif document is None:
                yield number, f"the corpus has no id {judgement.document!r}"
            else:
                asked, answer = queries[query], documents[document]
                problem = next((some for some in (asked, answer) if isinstance(some, str)), None)
                yield number, problem or {**asked, **answer}  # type: ignore[dict-item]

    def where(self, number: int) -> str:
        return " or ".join(where(file, number) for file in self.folder.qrels[:2])

    def stamp(self) -> list[str]:
        return self.folder.stamp()


@dataclass(frozen=True, slots=True)
class CorpusShard:
    """The table ``corpus`` of a folder, as rows of ``title`` and ``text``, with id and language."""

    files: tuple[File, ...]

    def rows(self, choose: Choose | None = None) -> Iterator[Numbered]:
        for _, row in _with_ids(self.files, None):
            columns = ("_id", "id", "title", "text", "language")
            yield row.row_number, {name: row.cells[name] for name in columns if name in row.cells}

    def where(self, number: int) -> str:
        return " or ".join(where(file, number) for file in self.files[:2])

    def stamp(self) -> list[str]:
        return [part for file in self.files for part in file.stamp()]


def is_beir(folder: File | None, files: Sequence[File]) -> bool:
    """Whether a folder, which holds ``files``, is in BEIR layout: it has judgements."""
    if folder is None:
        return False
    if any(file.stem == "qrels" and file.format for file in files) or _has(folder, "qrels"):
        return True
    return all(_has(folder, name) for name in ("corpus", "queries", _DEFAULT_TABLE))


def _has(folder: File, name: str) -> bool:
    return bool(folder.system.isdir(f"{folder.path}/{name}"))


def open_beir(path: str | Path, split: str | None = None, default: str = "test") -> BeirFolder:
    """The tables of a folder.

    Without ``split`` the judgements are those of a single file ``qrels``, or of the split ``default``; for
    evaluation (``default`` test) also those of the only split there is. Training must ask for test.

    Raises:
        UserError: a table is missing, or there are several splits and none of them is meant.
    """
    folder, files = find(path)
    if folder is None:
        raise UserError(f"{path} is not a folder in BEIR layout (corpus, queries and qrels)")
    corpus = _table(folder, files, "corpus", split or default)
    queries = _table(folder, files, "queries", split or default)
    qrels = _qrels(folder, files, split, default)
    return BeirFolder(corpus, queries, qrels, _unread(folder, files, [*corpus, *queries, *qrels]))


def _unread(folder: File, files: Sequence[File], read: Collection[File]) -> tuple[str, ...]:
    """Sentences on tables that are not of the layout, and on a table that lies there twice."""
    notes = []
    inside = [entry["name"].rsplit("/", 1)[-1] for entry in folder.system.ls(folder.path, detail=True)]
    others = [name for name in inside if name not in ("corpus", "queries", "qrels", _DEFAULT_TABLE)]
    if tables := [name for name in sorted(others) if _splits(folder, name)]:
        notes.append(
            f"tables not used: {', '.join(tables)}"
            + (" (every document is a candidate for every query)" if "top_ranked" in tables else "")
        )
    for name in ("corpus", "queries", "qrels"):
        alone = {file for file in files if file.format and _PART.sub("", file.stem) == name}
        twice = sorted(file.name for file in alone if file not in read)
        if twice:
            notes.append(f"the table {name} lies there more than once; not read: {', '.join(twice)}")
    return tuple(notes)


def open_corpus(path: str | Path, split: str | None = None) -> CorpusShard | None:
    """The table ``corpus`` of a folder that has one; None of any other path."""
    folder, files = find(path)
    if folder is None or not (_alone(files, "corpus") or _has(folder, "corpus")):
        return None
    return CorpusShard(_table(folder, files, "corpus", split or "test"))


def document_text(row: Record) -> str:
    """The title of a document, if it has one, a blank and its text."""
    text = row.text("text", may_be_empty=True)
    title = row.text("title", may_be_empty=True) if row.cells.get("title") else ""
    if not title.strip():
        return text
    return f"{title} {text}" if text.strip() else title


def known_id(name: str, known: Collection[str]) -> str | None:
    """``name`` as ``known`` spells it: exports write ``1.0`` for the id ``1``; None if it is not there."""
    return next((spelling for spelling in _spellings(name) if spelling in known), None)


def _spellings(name: str) -> tuple[str, ...]:
    """An id as it stands, and if it is a whole number, as exports write that."""
    whole = name.removesuffix(".0")
    return (name, whole, f"{whole}.0") if whole.isdecimal() else (name,)


def _text_or_problem(row: Record, role: str) -> dict[str, str] | str:
    """The cells of a pair that a query or document gives, or why it gives none."""
    try:
        if role == "document":
            return {"document": document_text(row)}
        language = row.language()
        return {"query": row.text("text", may_be_empty=True)} | ({"language": language} if language else {})
    except UserError as error:
        return str(error)


def _with_ids(files: Sequence[File], columns: ColumnUse | None) -> Iterator[tuple[str, Record]]:
    """The rows of a table, each with its id."""
    seen: set[str] = set()
    for row in records(files):
        name = "id" if "id" in row.cells and "_id" not in row.cells else "_id"
        key = row.label(name)
        if key in seen:
            raise UserError(f"{row.place}: the {name} {key!r} is used twice")
        seen.add(key)
        if columns is not None:  # BEIR's own column metadata is there, but empty
            columns.see(column for column, value in row.cells.items() if value not in (None, "", {}, []))
        yield key, row
    if not seen:
        raise UserError(f"{files[0]} is empty")


# ---- files of a table --------------------------------------------------------------------------------------


def _table(folder: File, files: Sequence[File], name: str, split: str) -> tuple[File, ...]:
    if alone := _alone(files, name):
        return alone
    splits = _splits(folder, name)
    if not splits:
        raise UserError(
            f"{folder} has no {name}: a file {name}.jsonl or {name}.parquet (also .gz or .zst) or a folder "
            f"{name} is needed"
        )
    if split not in splits and len(splits) > 1:
        raise UserError(
            f"{folder}/{name} has several splits ({', '.join(splits)}) and none is called {split}"
        )
    return splits[split] if split in splits else next(iter(splits.values()))


def _qrels(folder: File, files: Sequence[File], split: str | None, default: str) -> tuple[File, ...]:
    alone = _alone(files, "qrels")
    splits = _splits(folder, "qrels") or _splits(folder, _DEFAULT_TABLE)
    if split is None and alone:
        return alone
    if not splits and not alone:
        raise UserError(f"{folder} has no qrels: qrels.parquet, qrels/test.tsv or qrels/test.jsonl is needed")
    if (name := split or default) in splits:
        return splits[name]
    if split is None and default == "test" and len(splits) == 1:
        return next(iter(splits.values()))
    if split is None and default == "test":
        raise UserError(
            f"{folder}/qrels has several splits ({', '.join(splits)}) and none is called test: keep one"
        )
    there = ", ".join(splits) or alone[0].name
    raise UserError(f"{folder} has no judgements of the split {name!r}, only {there}; choose one with split")


def _alone(files: Sequence[File], name: str) -> tuple[File, ...]:
    """The files of the folder itself that make the table ``name``."""
    found = [file for file in files if file.format and _PART.sub("", file.stem) == name]
    return _of_one_format(found)


def _splits(folder: File, name: str) -> dict[str, tuple[File, ...]]:
    """Split -> its files, in the folder ``name``."""
    inner = f"{folder.path}/{name}"
    paths = folder.system.glob(f"{inner}/*.*") if folder.system.isdir(inner) else []
    found: dict[str, list[File]] = {}
    for file in (File(folder.system, path) for path in sorted(paths)):
        if file.format and not file.name.startswith((".", "_")):
            found.setdefault(_PART.sub("", file.stem), []).append(file)
    return {split: _of_one_format(some) for split, some in found.items()}


def _of_one_format(files: Sequence[File]) -> tuple[File, ...]:
    for kind in _FORMATS:
        if some := [file for file in files if file.format == kind]:
            plain = {
                file.stem: file for file in sorted(some, key=lambda file: -len(file.name))
            }  # .jsonl, not .gz
            return tuple(sorted(plain.values(), key=lambda file: file.name))
    return ()
