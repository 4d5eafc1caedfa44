"""Exact cosine search over float32 vectors, in memory or in a memory-mapped folder.

An index folder holds ``manifest.json`` and, for every part, ``part-00000.parquet`` (the rows: text and all
other columns of the input) and ``part-00000.npy`` (their vectors). The rows of a part are written first and
its vectors last, each under a temporary name that is then replaced, so a part counts exactly when both files
exist and a killed writer goes on after the last whole part.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moembed.files import write_whole
from moembed.search.exact import search_parts, top_k, unit_rows
from moembed.types import Hits, UserError

__all__ = ["Index", "IndexWriter", "top_k", "write_index"]

FORMAT, FORMAT_VERSION = "moembed-index", 1
# What writing changes, and where the model lies: all other fields must agree before a started folder goes on.
STATE_FIELDS = {"complete", "rows", "parts", "truncated", "model_path"}
_TRUNCATED = b"moembed.truncated"


@dataclass(frozen=True)
class Index:
    """A finished index folder, opened for reading; vectors are memory-mapped one part at a time."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path, space_id: str | None = None) -> Index:
        """Open the folder; with ``space_id``, refuse it unless its vectors live in that space.

        Raises:
            UserError: not an index, unfinished, of an unknown version or another space, or a part is missing.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        if manifest is None:
            raise UserError(f"{path} is not an index: it has no manifest.json")
        if not manifest["complete"]:
            raise UserError(
                f"the index {path} is unfinished: run the command that started it again to finish it"
            )
        for part in range(len(manifest["parts"])):
            for file in _part_paths(path, part):
                if not file.exists():
                    raise UserError(f"the index {path} lost {file.name}: run the command that made it again")
        index = cls(path, manifest)
        if space_id is not None:
            index.require_space(space_id)
        return index

    def require_space(self, space_id: str) -> None:
        """Raise UserError unless the vectors live in ``space_id``: cosines across spaces mean nothing."""
        if space_id != self.space_id:
            raise UserError(
                f"the index {self.path} holds vectors of space {self.space_id}, this model makes {space_id}: "
                "re-index the texts with this model, or search with the model that made the index"
            )

    @property
    def space_id(self) -> str:
        return self.manifest["space_id"]

    @property
    def dim(self) -> int:
        return self.manifest["dim"]

    def __len__(self) -> int:
        return self.manifest["rows"]

    def search(self, query_QM: np.ndarray, k: int) -> Hits:
        """``top_k`` over all parts; ``Hits.index`` counts rows through the whole index."""
        return search_parts(query_QM, self.vectors(), len(self), k)

    def vectors(self) -> Iterator[np.ndarray]:
        """The memory-mapped ``(rows, dim)`` vectors of each part in turn."""
        for part, rows in enumerate(self.manifest["parts"]):
            file = _part_paths(self.path, part)[1]
            try:
                vector_NM = np.load(file, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise UserError(f"cannot read {file}: {error}; make the index again") from None
            if vector_NM.shape != (rows, self.dim):
                raise UserError(
                    f"{file} holds {vector_NM.shape} numbers, not {(rows, self.dim)}; make it again"
                )
            yield vector_NM

    def rows(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """The stored rows at ``indices``, in that order; a key that a row lacked reads None.

        Raises:
            IndexError: a number that is not a row of this index.
        """
        index_K = np.fromiter(indices, dtype=np.int64)
        if index_K.size and not (index_K.min() >= 0 and index_K.max() < len(self)):
            raise IndexError(f"row numbers must lie in 0..{len(self) - 1}")
        end_P = np.cumsum(self.manifest["parts"])
        part_K = np.searchsorted(end_P, index_K, side="right")
        found: dict[int, dict[str, Any]] = {}
        for part in np.unique(part_K):
            row_K = index_K[part_K == part]
            start = end_P[part] - self.manifest["parts"][part]
            found.update(zip(row_K.tolist(), _read_rows(self.path, part, row_K - start), strict=True))
        return [dict(found[row]) for row in index_K.tolist()]


class IndexWriter:
    """Writes an index folder part by part, or goes on after the last whole part of a started one.

    Nothing is written before the first part. ``fields`` go to the manifest; a started folder whose fields
    differ (``model_path`` apart: a model may move) is refused with what differs.

    Attributes:
        parts: rows of every part that is written.
        truncated: texts in those parts that were longer than the model reads.
        complete: the folder is finished; nothing can be added.
    """

    def __init__(self, path: str | Path, *, space_id: str, dim: int, **fields: Any) -> None:
        self.path = Path(path)
        self.parts: list[int] = []
        self.truncated = 0
        self.complete = False
        identity = {"format": FORMAT, "format_version": FORMAT_VERSION, "space_id": space_id, "dim": dim}
        self._fields = {**identity, **fields}
        found = _read_manifest(self.path)
        if found is None:
            _require_free(self.path)
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
        while all(file.exists() for file in _part_paths(self.path, len(self.parts))):
            rows, truncated = _read_counts(_part_paths(self.path, len(self.parts))[0])
            self.parts.append(rows)
            self.truncated += truncated
        self.complete = found["complete"] and self.parts == found["parts"]

    @property
    def rows(self) -> int:
        return sum(self.parts)

    def append(self, vector_NM: np.ndarray, rows: Sequence[dict[str, Any]], truncated: int = 0) -> None:
        """Write the next part.

        Raises:
            UserError: no rows, or rows without columns; vectors that do not match them, are not ``dim`` wide
                or not finite; a full or read-only disk, which leaves the earlier parts as they were.
        """
        assert not self.complete, "a finished index cannot grow"
        table = _to_table(rows).replace_schema_metadata({_TRUNCATED: str(truncated)})
        if not rows or table.num_rows != len(rows):
            raise UserError(f"part {len(self.parts)} of {self.path} needs rows with at least one column")
        wanted = (len(rows), self._fields["dim"])
        if vector_NM.shape != wanted:
            raise UserError(f"{self.path} needs vectors of shape {wanted} here, got {vector_NM.shape}")
        unit_rows(vector_NM, "vector", self.rows)
        if not self.parts:
            self._write_manifest(complete=False)
        rows_file, vectors_file = _part_paths(self.path, len(self.parts))
        write_whole(rows_file, lambda file: pq.write_table(table, file))
        write_whole(vectors_file, lambda file: np.save(file, np.ascontiguousarray(vector_NM, np.float32)))
        self.parts.append(len(rows))
        self.truncated += truncated

    def finish(self) -> None:
        """Mark the folder complete, after which ``Index.open`` accepts it."""
        if not self.parts:
            raise UserError(f"there are no rows to write to {self.path}")
        self._write_manifest(complete=True)
        self.complete = True

    def _write_manifest(self, complete: bool) -> None:
        state = {"complete": complete, "rows": self.rows, "truncated": self.truncated, "parts": self.parts}
        text = json.dumps({**self._fields, **state}, indent=2, ensure_ascii=False) + "\n"
        write_whole(self.path / "manifest.json", lambda file: file.write(text.encode()))


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
        UserError: see ``IndexWriter``.
    """
    if vector_NM.ndim != 2 or len(vector_NM) != len(rows):
        raise UserError(f"{len(rows)} rows need a matrix of as many vectors, got shape {vector_NM.shape}")
    writer = IndexWriter(path, space_id=space_id, dim=vector_NM.shape[1], **fields)
    if writer.complete:
        raise UserError(f"{path} already holds a finished index: remove it, or choose another folder")
    writer.parts, writer.truncated = [], 0
    for start in range(0, len(rows), part_rows):
        writer.append(vector_NM[start : start + part_rows], rows[start : start + part_rows])
    writer.finish()
    return Index.open(path)


def _part_paths(path: Path, part: int) -> tuple[Path, Path]:
    return path / f"part-{part:05d}.parquet", path / f"part-{part:05d}.npy"


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """None where there is none."""
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not an index: its manifest.json is of another kind")
    if manifest.get("format_version") != FORMAT_VERSION:
        found = manifest.get("format_version")
        raise UserError(
            f"the index {path} has format version {found}, this moembed reads {FORMAT_VERSION}: "
            "read it with the moembed that made it, or make it again"
        )
    return manifest


def _require_free(path: Path) -> None:
    """A killed first write may leave its temporary file behind; anything else is somebody's."""
    if path.is_dir():
        if any(entry.suffix != ".tmp" for entry in path.iterdir()):
            raise UserError(f"{path} holds files that are not an index: choose an empty or new folder")
    elif path.exists():
        raise UserError(f"{path} is a file: choose an empty or new folder")


def _to_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Columns of one plain type as they are, nested or mixed ones as JSON text, marked so in the schema."""
    columns, fields = [], []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        column, marks = _plain_column(values), None
        if column is None:
            texts = [None if value is None else json.dumps(value, default=str) for value in values]
            column, marks = pa.array(texts, pa.string()), {"json": "true"}
        columns.append(column)
        fields.append(pa.field(name, column.type, metadata=marks))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _plain_column(values: list[Any]) -> pa.Array | None:
    try:
        column = pa.array(values)
    except (pa.ArrowException, ValueError, OverflowError, TypeError):
        return None
    return None if pa.types.is_nested(column.type) else column


def _read_rows(path: Path, part: int, row_K: np.ndarray) -> list[dict[str, Any]]:
    file = _part_paths(path, part)[0]
    try:
        table = pq.read_table(file).take(row_K)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {file}: {error}; make the index again") from None
    rows = table.to_pylist()
    for field in table.schema:
        if field.metadata and b"json" in field.metadata:
            for row in rows:
                row[field.name] = row[field.name] and json.loads(row[field.name])
    return rows


def _read_counts(file: Path) -> tuple[int, int]:
    """Rows of a part and how many of its texts were truncated, from the footer alone."""
    try:
        footer = pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {file}: {error}; delete it and run the same command again") from None
    return footer.num_rows, int(footer.metadata[_TRUNCATED])
