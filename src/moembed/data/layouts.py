"""What a path holds, as shards: plain files, contrastors and BEIR folders, Hugging Face data sets.

A shard gives numbered rows and says where one of them stands; a source reads its shards one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from moembed.data.files import KNOWN, File, find, is_pattern
from moembed.data.readers import BLOCK, Choose, Numbered, Row, arrow_rows, read, text_problem, where
from moembed.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset

HF = "hf:"  # path: hf:owner/name


class Shard(Protocol):
    def rows(self, choose: Choose | None = None) -> Iterator[Numbered]: ...

    def where(self, number: int) -> str: ...

    def stamp(self) -> list[str]:
        """What changes when the rows do."""


@dataclass(frozen=True, slots=True)
class FileShard:
    """A file of rows; ``count``, where known, is how many there must be."""

    file: File
    count: int | None = None

    def rows(self, choose: Choose | None = None) -> Iterator[Numbered]:
        found = 0
        for row in read(self.file, choose):
            found += 1
            yield row
        if self.count not in (None, found):
            raise UserError(f"{self.file} holds {found} rows, its counts.json says {self.count}")

    def where(self, number: int) -> str:
        return where(self.file, number)

    def stamp(self) -> list[str]:
        return [*self.file.stamp(), str(self.count)]


def shards(path: str | Path, split: str | None = None, subset: str | None = None) -> list[Shard]:
    """The shards of a path: a file, a pattern, a folder of files, or what has a layout of its own.

    ==========================================  ==========================================================
    ``hf:owner/name``                           a data set of the Hugging Face hub (``split``, ``subset``)
    a folder with ``state.json`` or
    ``dataset_dict.json``                       ``datasets.save_to_disk``
    a folder with ``qrels``                     BEIR: one pair per judgement above zero (``split``)
    a folder with ``counts.json``               contrastors: JSONL shards, whose rows are counted
    ==========================================  ==========================================================

    Raises:
        UserError: nothing there, an unknown format, several formats, no such split.
    """
    if str(path).startswith(HF):
        return [HfShard(_load_by_name(str(path).removeprefix(HF), split, subset), str(path))]
    folder, files = find(path)
    if subset is not None:
        raise UserError(f"{path} has no subsets, so subset={subset} means nothing; only {HF}owner/name has")
    names = {file.name: file for file in files}
    if folder and {"state.json", "dataset_dict.json"} & names.keys():
        return [HfShard(_load_from_disk(str(path), split), str(path))]
    if folder and ("qrels.parquet" in names or folder.system.isdir(f"{folder.path}/qrels")):
        return [_beir(folder, files, split)]
    if split is not None:
        raise UserError(f"{path} has no splits, so split={split} means nothing; name the files to read")
    data = [file for file in files if file.format and not file.name.startswith((".", "_"))]
    if not data:
        what = "holds no file that" if folder or is_pattern(path) else "is not a folder and not a file that"
        raise UserError(f"{path} {what} ends in {KNOWN}")
    if len(formats := sorted({file.format for file in data})) > 1:
        raise UserError(
            f"{path} holds {' and '.join(formats)} files; name one kind, as in {path}/*.{formats[0]}"
        )
    counts = _counts(names["counts.json"]) if folder and "counts.json" in names else {}
    if missing := sorted(counts.keys() - names.keys()):
        raise UserError(f"{path} lacks the shard {missing[0]} that its counts.json names")
    return [FileShard(file, counts.get(file.name)) for file in data]


def _counts(file: File) -> dict[str, int]:
    """File name -> rows, from ``{path: rows}`` or ``{"count_per_file": {path: rows}}``."""
    try:
        with file.open() as stored:
            values = json.loads(stored.read())
        values = values.get("count_per_file", values)
        return {path.rsplit("/", 1)[-1]: int(rows) for path, rows in values.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a JSON object of rows by shard ({error})") from None


# ---- BEIR ----


@dataclass(frozen=True, slots=True)
class BeirShard:
    """Pairs (query, document) of every judgement above zero; the judged texts alone are held in memory."""

    queries: File
    corpus: File
    qrels: File

    def rows(self, choose: Choose | None = None) -> Iterator[Numbered]:
        judged = list(self._judged())
        queries = _texts(self.queries, {query for _, query, _ in judged})
        documents = _texts(self.corpus, {document for _, _, document in judged})
        for number, query, document in judged:
            if query not in queries or document not in documents:
                yield number, f"{'the corpus' if query in queries else 'queries'} has no such _id"
            else:
                yield number, {"query": queries[query], "document": documents[document]}

    def where(self, number: int) -> str:
        return where(self.qrels, number)

    def stamp(self) -> list[str]:
        return [part for file in (self.queries, self.corpus, self.qrels) for part in file.stamp()]

    def _judged(self) -> Iterator[tuple[int, str, str]]:
        for number, row in read(self.qrels):
            try:
                if float(row["score"]) > 0:  # type: ignore[index]
                    yield number, str(row["query-id"]), str(row["corpus-id"])  # type: ignore[index]
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"{self.where(number)}: a judgement has query-id, corpus-id and a number as score"
                ) from None


def _beir(folder: File, files: list[File], split: str | None) -> BeirShard:
    names = {file.name: file for file in files}

    def table(name: str) -> File:
        found = [names[key] for key in names if key.split(".")[0] == name and names[key].format]
        if not found:
            raise UserError(f"{folder} has qrels but no {name}.jsonl or {name}.parquet")
        return found[0]

    return BeirShard(table("queries"), table("corpus"), _qrels(folder, names, split))


def _qrels(folder: File, names: Mapping[str, File], split: str | None) -> File:
    if split is None and "qrels.parquet" in names:
        return names["qrels.parquet"]
    inside = (
        folder.system.glob(f"{folder.path}/qrels/*.*") if folder.system.isdir(f"{folder.path}/qrels") else []
    )
    splits = {file.stem: file for file in (File(folder.system, path) for path in inside) if file.format}
    name = split or "train"
    if name not in splits:
        raise UserError(
            f"{folder} has no judgements of the split {name!r}, only "
            f"{', '.join(sorted(splits)) or 'qrels.parquet'}; choose one with split"
        )
    return splits[name]


def _texts(file: File, wanted: set[str]) -> dict[str, str]:
    """id -> title and text, of the ids that are wanted."""
    texts: dict[str, str] = {}
    for number, row in read(file):
        if isinstance(row, str):
            raise UserError(f"{where(file, number)}: {row}")
        if (name := str(row.get("_id"))) in wanted:
            texts[name] = " ".join(row[key] for key in ("title", "text") if not text_problem(row.get(key)))
    return texts


# ---- Hugging Face ----


@dataclass(frozen=True, slots=True)
class HfShard:
    """A data set that the ``datasets`` library holds, memory-mapped, in its own cache."""

    dataset: Dataset
    name: str

    def rows(self, choose: Choose | None = None) -> Iterator[Numbered]:
        dataset = self.dataset
        if choose:
            dataset = dataset.select_columns(list(choose(dataset.column_names)))
        number = 0
        for table in dataset.with_format("arrow").iter(BLOCK):
            for batch in table.to_batches():
                for row in arrow_rows(batch):
                    number += 1
                    yield number, row

    def where(self, number: int) -> str:
        return f"{self.name}, row {number}"

    def stamp(self) -> list[str]:
        return [self.name, str(self.dataset._fingerprint), str(len(self.dataset))]


def _load_by_name(name: str, split: str | None, subset: str | None) -> Dataset:
    datasets = _library()
    try:
        return datasets.load_dataset(name, subset, split=split or "train")
    except Exception as error:  # hub, network and builders have errors of their own
        raise UserError(f"cannot load the data set {name!r}: {' '.join(str(error).split())}") from None


def _load_from_disk(path: str, split: str | None) -> Dataset:
    datasets = _library()
    try:
        found = datasets.load_from_disk(path)
    except Exception as error:
        raise UserError(f"cannot load the data set {path}: {' '.join(str(error).split())}") from None
    if not isinstance(found, datasets.DatasetDict):
        if split is not None:
            raise UserError(f"{path} is a single split, so split={split} means nothing")
        return found
    if (name := split or "train") not in found:
        raise UserError(f"{path} has no split {name!r}, only {', '.join(found)}; choose one with split")
    return found[name]


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            "Hugging Face data sets need the datasets library: pip install 'moembed[data]'"
        ) from None
    return datasets


def plain_rows(path: str | Path) -> Iterator[Row]:
    """Every row of every shard of ``path``.

    Raises:
        UserError: as ``shards``, and for a line that is not a row.
    """
    for shard in shards(path):
        for number, row in shard.rows():
            if isinstance(row, str):
                raise UserError(f"{shard.where(number)}: {row}")
            yield row
