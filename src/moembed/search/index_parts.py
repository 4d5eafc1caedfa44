"""The files of the parts of an index folder: rows, vectors and terms.

``part-00000.parquet`` holds the rows of a part, text and all other columns of the input; ``part-00000.npy``
their vectors; ``part-00000.terms.npz`` the words of their texts, for BM25. The manifest says how large every
file is and what its CRC-32 is, so that a cut file is found when the folder is opened and a changed one when
it is read. Folders of early versions do not say it and are read without.

A part of an index that is updated by id keeps three columns beside those of the input: the id of a row, and
hashes of its text and of the whole row, which tell what changed; a multi-vector index one more, see
`moembed.search.token_parts`. Folders of format version 1 have neither
these nor terms; ``index_ids`` and ``bm25`` make them from the rows.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moembed.files import write_whole
from moembed.search.part_sample import packed, unpacked
from moembed.types import UserError

TRUNCATED, SAMPLE = b"moembed.truncated", b"moembed.sample"
_BLOCK = 2**20
_GROUP_ROWS = 256  # rows that are read to show one
_PARSING = Lock()

# Columns that are ours: the id of a row, hashes of its text and of all of it, its number of token vectors.
ID, TEXT_KEY, ROW_KEY, TOKENS = OURS = ("moembed:id", "moembed:text", "moembed:row", "moembed:tokens")


class DamagedPartError(UserError):
    """A file of the index is not what was written."""

    def __init__(self, file: Path, problem: str) -> None:
        self.what = f"{file} is damaged ({problem})"
        super().__init__(f"{self.what}: run the command that made the index again, it makes this part anew")


def part_paths(path: Path, part: int) -> tuple[Path, Path, Path, Path]:
    """Rows, vectors, terms and, of a multi-vector index, the vectors of tokens."""
    stem = f"part-{part:05d}"
    names = (f"{stem}.parquet", f"{stem}.npy", f"{stem}.terms.npz", f"{stem}.tokens.npy")
    return path / names[0], path / names[1], path / names[2], path / names[3]


def file_stamp(file: Path) -> str:
    """Size and CRC-32 of a file, as the manifest keeps them: ``1234-89abcdef``."""
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
    if stamp is not None and file_stamp(file) != stamp:
        raise DamagedPartError(file, "its content changed since it was written")


def map_vectors(file: Path, rows: int, dim: int, dtype: type | np.dtype = np.float32) -> np.ndarray:
    """The ``(rows, dim)`` vectors of a part, or their codes, mapped and not loaded."""
    try:
        # numpy reads the header with Python's parser, which in 3.11 may fail where several threads use it
        with _PARSING:
            vector_NM = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DamagedPartError(file, str(error)) from None
    if vector_NM.shape != (rows, dim) or vector_NM.dtype != dtype:
        raise DamagedPartError(file, f"it holds {vector_NM.shape} numbers, not {(rows, dim)}")
    return vector_NM


def count_rows(file: Path) -> tuple[int, int]:
    """Rows of a part and how many of its texts were truncated, from the footer alone."""
    try:
        footer = pq.read_metadata(file)
        return footer.num_rows, int(footer.metadata[TRUNCATED])
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise DamagedPartError(file, str(error)) from None


def read_rows(file: Path, row_K: np.ndarray) -> tuple[list[dict[str, Any]], list[str] | None]:
    """The rows of a part at these numbers, and their ids if the part keeps them."""
    try:
        with pq.ParquetFile(file) as opened:
            groups = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
            end_G = np.cumsum(groups)
            group_K = np.searchsorted(end_G, row_K, side="right")
            needed = np.unique(group_K)
            place_G = np.zeros(len(groups), dtype=np.int64)  # rows of a group that is read begin here
            place_G[needed] = np.cumsum(np.append(0, np.take(groups, needed)[:-1]))
            table = opened.read_row_groups(needed.tolist()).take(
                row_K - (end_G - groups)[group_K] + place_G[group_K]
            )
    except (OSError, pa.ArrowException, IndexError) as error:
        raise DamagedPartError(file, str(error)) from None
    ids = table[ID].to_pylist() if ID in table.column_names else None
    return as_rows(table), ids


def as_rows(table: pa.Table) -> list[dict[str, Any]]:
    """What ``as_table`` was given; a key that a row lacked reads None."""
    table = table.drop_columns([name for name in OURS if name in table.column_names])
    rows = table.to_pylist()
    for field in table.schema:
        if is_json(field):
            for row in rows:
                row[field.name] = row[field.name] and json.loads(row[field.name])
    return rows


def is_json(field: pa.Field) -> bool:
    """Whether a column holds nested or mixed values, as JSON text."""
    return bool(field.metadata and b"json" in field.metadata)


def read_table(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a part, or some columns of them; those that the part lacks are left out."""
    try:
        with pq.ParquetFile(file) as opened:
            there = opened.schema_arrow.names
            return opened.read(there if columns is None else [name for name in columns if name in there])
    except (OSError, pa.ArrowException) as error:
        raise DamagedPartError(file, str(error)) from None


def read_schema(file: Path) -> list[pa.Field]:
    """The columns of a part, without ours."""
    try:
        return [field for field in pq.read_schema(file) if field.name not in OURS]
    except (OSError, pa.ArrowException) as error:
        raise DamagedPartError(file, str(error)) from None


def read_sample(file: Path) -> pa.Table | None:
    """Some rows of a part, see ``part_sample``; None of one that was written without."""
    try:
        text = (pq.read_metadata(file).metadata or {}).get(SAMPLE)
        return None if text is None else unpacked(text)
    except (OSError, ValueError, pa.ArrowException, zlib.error) as error:
        raise DamagedPartError(file, str(error)) from None


def write_rows(file: Path, table: pa.Table, truncated: int, advice: str) -> None:
    """Write the rows of a part, in groups small enough to show one row quickly."""
    plain = [field.name for field in table.schema if not is_json(field) and field.name not in OURS]
    table = table.replace_schema_metadata({TRUNCATED: str(truncated), SAMPLE: packed(table, plain)})
    write_whole(file, lambda opened: pq.write_table(table, opened, row_group_size=_GROUP_ROWS), advice)


def write_vectors(file: Path, vector_NM: np.ndarray, advice: str) -> None:
    array = np.ascontiguousarray(vector_NM)
    write_whole(file, lambda opened: np.save(opened, array), advice)


def as_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Columns of one plain type as they are, nested or mixed ones as JSON text, marked so in the schema."""
    columns, fields = [], []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        column, marks = plain_column(values), None
        if column is None:
            texts = [None if value is None else json.dumps(value, default=str) for value in values]
            column, marks = pa.array(texts, pa.string()), {"json": "true"}
        columns.append(column)
        try:
            fields.append(pa.field(name, column.type, metadata=marks))
        except UnicodeEncodeError:
            raise UserError(f"the name of the column {name!r} is not UTF-8: rename it") from None
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def plain_column(values: list[Any]) -> pa.Array | None:
    """The values as one column; None where they are nested, or of kinds that one column would change."""
    kinds = {(type(value), getattr(value, "tzinfo", None) is None) for value in values if value is not None}
    if len(kinds) > 1 and not {kind for kind, _ in kinds} <= {int, float}:
        return None  # pyarrow would cut a time to its date, leave a zone out, or make bytes of texts
    try:
        column = pa.array(values)
    except (pa.ArrowException, ValueError, OverflowError, TypeError):
        return None
    return None if pa.types.is_nested(column.type) else column
