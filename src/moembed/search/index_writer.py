"""Vectors of one source in its order, part by part: what `moembed embed` makes.

The rows of a part are written first and its vectors last, each under a temporary name that is then replaced,
so a part counts exactly when both files exist and are what was written. A killed writer goes on after the
parts that are whole, and a damaged part of a finished folder is made again.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from moembed.files import locked, write_json
from moembed.search.exact import require_rows
from moembed.search.index import Index
from moembed.search.index_manifest import FORMAT, IN_ORDER, read_manifest
from moembed.search.index_parts import (
    DamagedPartError,
    as_table,
    count_rows,
    file_stamp,
    map_vectors,
    part_paths,
    require_same,
    write_rows,
    write_vectors,
)
from moembed.types import UserError

# What writing changes, and where the model lies: all other fields must agree before a started folder goes on.
STATE_FIELDS = {"complete", "rows", "parts", "stamps", "truncated", "model_path"}
_ADVICE = "earlier parts are kept: correct this and run the same command again"


class IndexWriter:
    """Writes the parts of an index folder that are not there yet.

    Nothing is written before the first part. ``fields`` go to the manifest; a started folder whose fields
    differ (``model_path`` apart: a model may move) is refused with what differs. One writer at a time: hold
    ``files.locked`` around it.

    Attributes:
        complete: the folder is finished; nothing can be added.
    """

    def __init__(self, path: str | Path, *, space_id: str, dim: int, **fields: Any) -> None:
        self.path = Path(path)
        self.complete = False
        self._counts: dict[int, tuple[int, int]] = {}  # part -> its rows, and how many of them were truncated
        self._stamps: dict[int, tuple[str, str]] = {}
        identity = {"format": FORMAT, "format_version": IN_ORDER, "space_id": space_id, "dim": dim}
        self._fields = {**identity, **fields}
        found = read_manifest(self.path)
        if found is None:
            require_free_folder(self.path)
        elif found["format_version"] != IN_ORDER:
            raise UserError(
                f"{self.path} holds an index that `moembed index` keeps up to date: choose another folder"
            )
        else:
            self._go_on(found)

    def _go_on(self, found: dict[str, Any]) -> None:
        differing = [
            f"{name} is {found.get(name)!r} there and {self._fields.get(name)!r} here"
            for name in sorted((found.keys() | self._fields.keys()) - STATE_FIELDS)
            if found.get(name) != self._fields.get(name)
        ]
        if differing:
            raise UserError(
                f"{self.path} was started with other settings ({'; '.join(differing)}): "
                "repeat the first settings, or choose another folder"
            )
        damaged = [problem for part in self._started(found) if (problem := self._adopt(part, found))]
        if damaged:
            more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            warnings.warn(f"{damaged[0]}{more}: its texts are embedded again", stacklevel=3)
        self.complete = found["complete"] and self.parts == found["parts"]

    def _started(self, found: dict[str, Any]) -> list[int]:
        """The parts that the manifest knows and, of an unfinished folder, those that it may not know yet."""
        known = set(range(len(found["parts"])))
        if not found["complete"]:
            names = (re.fullmatch(r"part-(\d{5,})\.npy", entry.name) for entry in self.path.iterdir())
            known |= {int(name[1]) for name in names if name}
        return sorted(known)

    def _adopt(self, part: int, found: dict[str, Any]) -> str | None:
        """Take a part over if it is what was written; else say what is wrong, if it once was whole."""
        known = found.get("stamps") or []
        stamp = tuple(known[part]) if part < len(known) and known[part] else None
        files = part_paths(self.path, part)[:2]
        try:
            for file, expected in zip(files, stamp or (None, None), strict=True):
                require_same(file, expected)
            rows, truncated = count_rows(files[0])
            map_vectors(files[1], rows, self._fields["dim"])
        except DamagedPartError as error:
            once_whole = part < len(found["parts"]) and found["parts"][part] is not None
            return error.what if once_whole else None
        self._counts[part] = rows, truncated
        self._stamps[part] = (stamp[0], stamp[1]) if stamp else _stamps(self.path, part)
        return None

    def has(self, part: int) -> bool:
        """Whether the part is there already."""
        return part in self._counts

    @property
    def parts(self) -> list[int | None]:
        """Rows of every part up to the last that is written; None for one that is missing between."""
        return [self._counts[part][0] if self.has(part) else None for part in self._numbers()]

    def _numbers(self) -> range:
        return range(max(self._counts, default=-1) + 1)

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self._counts.values())

    @property
    def truncated(self) -> int:
        """Texts in the parts that were longer than the model reads."""
        return sum(truncated for _, truncated in self._counts.values())

    def append(self, vector_NM: np.ndarray, rows: Sequence[dict[str, Any]], truncated: int = 0) -> None:
        """Write the first part that is not there yet.

        Raises:
            UserError: no rows, or rows without columns; vectors that do not match them, are not ``dim`` wide
                or not finite; a full or read-only disk, which leaves the other parts as they were.
        """
        assert not self.complete, "a finished index cannot grow"
        part = next(number for number in count() if not self.has(number))
        table = as_table(rows)
        if not rows or table.num_rows != len(rows):
            raise UserError(f"part {part} of {self.path} needs rows with at least one column")
        wanted = (len(rows), self._fields["dim"])
        if vector_NM.shape != wanted:
            raise UserError(f"{self.path} needs vectors of shape {wanted} here, got {vector_NM.shape}")
        require_rows(vector_NM, "vector", self.rows)
        if not self._counts:
            self._write_manifest(complete=False)
        rows_file, vectors_file, *_ = part_paths(self.path, part)
        write_rows(rows_file, table, truncated, _ADVICE)
        write_vectors(vectors_file, vector_NM.astype(np.float32), _ADVICE)
        self._counts[part] = len(rows), truncated
        self._stamps[part] = _stamps(self.path, part)
        self._write_manifest(complete=False)

    def start_anew(self) -> None:
        """Write over the parts that are there."""
        self._counts, self._stamps = {}, {}

    def finish(self) -> None:
        """Mark the folder complete, after which ``Index.open`` accepts it."""
        if not self.parts:
            raise UserError(f"there are no rows to write to {self.path}")
        for file in self.path.glob(".*.tmp"):  # left by a process that was killed
            file.unlink(missing_ok=True)
        self._write_manifest(complete=True)
        self.complete = True

    def _write_manifest(self, complete: bool) -> None:
        state = {
            "complete": complete,
            "rows": self.rows,
            "truncated": self.truncated,
            "parts": self.parts,
            "stamps": [self._stamps.get(part) for part in self._numbers()],
        }
        write_json(self.path / "manifest.json", {**self._fields, **state}, _ADVICE)


def write_index(
    path: str | Path,
    vector_NM: np.ndarray,
    rows: Sequence[dict[str, Any]],
    *,
    space_id: str,
    part_rows: int = 4096,
    **fields: Any,
) -> Index:
    """Write vectors that are already in memory, with their rows, as a finished index and open it.

    An unfinished folder of the same fields is written anew; a finished one is refused.

    Raises:
        UserError: see ``IndexWriter``; another process writes there.
    """
    if vector_NM.ndim != 2 or len(vector_NM) != len(rows):
        raise UserError(f"{len(rows)} rows need a matrix of as many vectors, got shape {vector_NM.shape}")
    with locked(Path(path)):
        writer = IndexWriter(path, space_id=space_id, dim=vector_NM.shape[1], **fields)
        if writer.complete:
            raise UserError(f"{path} already holds a finished index: remove it, or choose another folder")
        writer.start_anew()
        for start in range(0, len(rows), part_rows):
            writer.append(vector_NM[start : start + part_rows], rows[start : start + part_rows])
        writer.finish()
    return Index.open(path)


def _stamps(path: Path, part: int) -> tuple[str, str]:
    rows, vectors, *_ = part_paths(path, part)
    return file_stamp(rows), file_stamp(vectors)


def require_free_folder(path: Path) -> None:
    """A killed first write may leave its temporary file behind; anything else is somebody's."""
    if path.is_dir():
        if any(entry.suffix != ".tmp" and entry.name != ".lock" for entry in path.iterdir()):
            raise UserError(f"{path} holds files that are not an index: choose an empty or new folder")
    elif path.exists():
        raise UserError(f"{path} is a file: choose an empty or new folder")
