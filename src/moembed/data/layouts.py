"""What a path holds, as shards: plain files, contrastors and BEIR folders, Hugging Face data sets.

A shard gives numbered rows and says where one of them stands; a source reads its shards one after the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from moembed.data.beir import BeirShard, is_beir, open_beir, open_corpus
from moembed.data.files import KNOWN, File, find, is_pattern
from moembed.data.readers import BLOCK, Choose, Numbered, Row, arrow_rows, read, where
from moembed.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset

HF = "hf:"  # path: hf:owner/name
_PART = re.compile(r"-\d+-of-\d+$")  # of the name of a file that holds a part of a split
_HELD_OUT = {"dev", "test", "valid", "validation", "val", "eval"}


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
    if is_beir(folder, files):
        return [BeirShard(open_beir(path, split, default="train"))]
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


def require_one_side(path: str | Path) -> None:
    """Refuse a folder whose files are the sides of a split: training would read them as one, the test too.

    Raises:
        UserError: files called train lie beside others called dev, test or the like.
    """
    folder, files = (None, []) if str(path).startswith(HF) else find(path)
    if folder is None or is_beir(folder, files):
        return
    sides = {_PART.sub("", file.stem): file.name for file in files if file.format}
    held_out = [name for side, name in sides.items() if side in _HELD_OUT]
    if "train" in sides and held_out:
        raise UserError(
            f"{path} holds {sides['train']} and {held_out[0]}, which training should not see: name the file "
            f"to read, as in {path}/{sides['train']}, or a pattern for all of them"
        )


def corpus_shards(path: str | Path, split: str | None = None, subset: str | None = None) -> list[Shard]:
    """The shards of a path whose rows are documents: of a folder with a table ``corpus`` only that."""
    corpus = None if str(path).startswith(HF) else open_corpus(path, split)
    return [corpus] if corpus else shards(path, split, subset)


def _counts(file: File) -> dict[str, int]:
    """File name -> rows, from ``{path: rows}`` or ``{"count_per_file": {path: rows}}``."""
    try:
        with file.open() as stored:
            values = json.loads(stored.read())
        values = values.get("count_per_file", values)
        return {path.rsplit("/", 1)[-1]: int(rows) for path, rows in values.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a JSON object of rows by shard ({error})") from None


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
