"""The files of an index folder: its manifest, and the rows and vectors of every part.

``part-00000.parquet`` holds the rows of a part, text and all other columns of the input, and
``part-00000.npy`` their vectors. The manifest says how large every file is and what its CRC-32 is, so that a
cut file is found when the folder is opened and a changed one when it is read. Folders of earlier versions do
not say it and are read without.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moembed.types import UserError

FORMAT, FORMAT_VERSION = "moembed-index", 1
TRUNCATED = b"moembed.truncated"
_BLOCK = 2**20

Stamp = tuple[str, str]  # of the rows and of the vectors of a part


class DamagedPartError(UserError):
    """A file of the index is not what was written."""

    def __init__(self, file: Path, problem: str) -> None:
        self.what = f"{file} is damaged ({problem})"
        super().__init__(f"{self.what}: run the command that made the index again, it makes this part anew")


def part_paths(path: Path, part: int) -> tuple[Path, Path]:
    return path / f"part-{part:05d}.parquet", path / f"part-{part:05d}.npy"


def part_stamp(path: Path, part: int) -> Stamp:
    """Size and CRC-32 of both files, as the manifest keeps them: ``1234-89abcdef``."""
    rows, vectors = part_paths(path, part)
    return _stamp(rows), _stamp(vectors)


def _stamp(file: Path) -> str:
    size = crc = 0
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return f"{size}-{crc:08x}"


def require_size(file: Path, stamp: str | None) -> None:
    """The quick check, for opening.

    Raises:
        DamagedPartError: the file is not there, or of another size than was written.
    """
    try:
        size = file.stat().st_size
    except OSError as error:
        raise DamagedPartError(file, "it is not there" if not file.exists() else str(error)) from None
    if stamp is not None and size != int(stamp.partition("-")[0]):
        raise DamagedPartError(file, f"{size} bytes, {stamp.partition('-')[0]} were written")


def require_same(file: Path, stamp: str | None) -> None:
    """The whole check, before reading.

    Raises:
        DamagedPartError: the file changed since it was written.
    """
    require_size(file, stamp)
    if stamp is not None and _stamp(file) != stamp:
        raise DamagedPartError(file, "its content changed since it was written")


def read_manifest(path: Path) -> dict[str, Any] | None:
    """None where there is none.

    Raises:
        UserError: another kind of manifest, or of another version.
    """
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


def map_vectors(file: Path, rows: int, dim: int) -> np.ndarray:
    """The ``(rows, dim)`` vectors of a part, mapped and not loaded."""
    try:
        vector_NM = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DamagedPartError(file, str(error)) from None
    if vector_NM.shape != (rows, dim) or vector_NM.dtype != np.float32:
        raise DamagedPartError(file, f"it holds {vector_NM.shape} numbers, not {(rows, dim)}")
    return vector_NM


def count_rows(file: Path) -> tuple[int, int]:
    """Rows of a part and how many of its texts were truncated, from the footer alone."""
    try:
        footer = pq.read_metadata(file)
        return footer.num_rows, int(footer.metadata[TRUNCATED])
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise DamagedPartError(file, str(error)) from None


def read_rows(file: Path, row_K: np.ndarray) -> list[dict[str, Any]]:
    """The rows of a part at these numbers."""
    try:
        table = pq.read_table(file).take(row_K)
    except (OSError, pa.ArrowException) as error:
        raise DamagedPartError(file, str(error)) from None
    rows = table.to_pylist()
    for field in table.schema:
        if field.metadata and b"json" in field.metadata:
            for row in rows:
                row[field.name] = row[field.name] and json.loads(row[field.name])
    return rows


def as_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
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
