"""Making the approximate part of an index, see ``ann``."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moembed.machine import version as installed
from moembed.search import qdrant_edge, where_qdrant
from moembed.search.ann import ENGINES, NEAREST, ROW_BITS, AnnPart, AnnSearcher
from moembed.search.exact import search_parts
from moembed.search.index_manifest import commit, parts_of, read_manifest
from moembed.search.index_parts import file_stamp
from moembed.search.index_reader import PartReader
from moembed.search.part_sample import LONGEST
from moembed.search.where_mask import FLAG, NUMBER, TEXT
from moembed.types import UserError

_BATCH = 1000  # points written at a time
_SAMPLE = 100  # rows that recall is measured with
_ADVICE = "the index is searched exactly: correct this and run the same command again"


def require_engine(engine: str | None) -> None:
    """
    Raises:
        UserError: an engine that is not known, or whose library is not installed.
    """
    if engine not in (None, *ENGINES):
        raise UserError(f"unknown engine {engine!r}; known are {', '.join(ENGINES)}")
    if engine == qdrant_edge.NAME:
        qdrant_edge.library()


def require_engine_of(path: Path, engine: str | None) -> None:
    """``require_engine``, or the same of the engine that an index has.

    Raises:
        UserError: see `require_engine`; an approximate engine for codes.
    """
    manifest = read_manifest(path) or {}
    if "codec" in manifest and engine not in (None, "exact"):
        raise UserError(
            f"{path} holds codes, which are searched exactly: {engine} takes floats, an index that was made "
            "without --codec"
        )
    there = AnnPart.of(manifest)
    require_engine(engine or (there.engine if there else None))


def refresh(path: Path, engine: str | None, graph_from: int | None = None) -> AnnPart | None:
    """Make the approximate part of an index that was committed, unless it is there, of this version of the
    engine, and covers enough.

    Hold ``files.locked``. Until it is whole the index is searched with the one before.

    Args:
        engine: of `ENGINES`; None: the one that the index has.
        graph_from: see `qdrant_edge.build`.

    Raises:
        UserError: the library is not installed, the disk is full: the rows of the index are as they were.
    """
    manifest = read_manifest(path)
    assert manifest is not None
    there = AnnPart.of(manifest)
    engine = engine or (there.engine if there else "exact")
    if engine == "exact":
        if "ann" in manifest:
            commit(path, {name: value for name, value in manifest.items() if name != "ann"}, _ADVICE)
        return None
    reader = PartReader(path, tuple(parts_of(manifest)), manifest["dim"], manifest.get("column"))
    is_ours = there is not None and (there.engine, there.version) == (engine, _version())
    if there and is_ours and there.is_current(reader) and not there.problem(path, True):
        return there
    made = _made(path, reader, engine, graph_from)
    commit(path, {**manifest, "ann": asdict(made)}, _ADVICE)
    return made


def _made(path: Path, reader: PartReader, engine: str, graph_from: int | None) -> AnnPart:
    folder = next(path / f"ann-{n:05d}" for n in count() if not (path / f"ann-{n:05d}").exists())
    fields = _fields(reader)
    try:
        kinds = dict(fields.values())
        qdrant_edge.build(folder, reader.dim, _points(reader, fields), kinds, graph_from)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        stamps = {str(file.relative_to(folder)): file_stamp(file) for file in files}
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (UserError, KeyboardInterrupt)) or not isinstance(error, Exception):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{engine} cannot write {folder} ({reason}): {_ADVICE}") from None
    parts = tuple(part.number for part in reader.parts)
    made = AnnPart(engine, _version(), folder.name, parts, fields, stamps, 1.0, 0, len(reader))
    recall, sample = _recall(reader, AnnSearcher(reader, made, path))
    return replace(made, recall=recall, sample=sample)


def _version() -> str:
    """Of the engine: another one may not read what this one wrote."""
    return installed(qdrant_edge.DISTRIBUTION) or "unknown"


def _fields(reader: PartReader) -> dict[str, tuple[str, str]]:
    """The columns that the engine can filter by as we do, with the name and the kind of their field."""
    fields: dict[str, tuple[str, str]] = {}
    for column, kind in reader.columns.items():
        # a long text that no sample holds is not read: a whole column of them may be more than the memory
        if kind == TEXT and reader.samples is not None and column not in reader.samples.names:
            continue
        pieces = [piece for piece in reader.rows_of_columns.pieces(column) if piece is not None]
        # true and false as 1 and 0: version 0.9 of the engine finds neither by its own kind
        name = where_qdrant.WHOLE if kind == FLAG else None
        if kind in (TEXT, NUMBER):
            name = (_text_kind if kind == TEXT else _number_kind)(pieces)
        if name is not None:
            fields[column] = (f"c{len(fields)}", name)
    return fields


def _text_kind(pieces: Sequence[pa.Array]) -> str | None:
    """None: long texts are what is searched, and not what filters."""
    letters = sum(pc.sum(pc.utf8_length(piece)).as_py() or 0 for piece in pieces)
    return where_qdrant.TEXT if letters <= LONGEST * sum(len(piece) for piece in pieces) else None


def _number_kind(pieces: Sequence[pa.Array]) -> str | None:
    """None: numbers that the engine cannot hold, or would compare in another way."""
    is_whole = all(pa.types.is_integer(piece.type) for piece in pieces)
    for piece in pieces:
        if pa.types.is_decimal(piece.type):
            return None
        bounds = pc.min_max(piece).as_py()
        plain = [value for value in bounds.values() if value is not None]
        if not all(math.isfinite(value) and abs(value) <= where_qdrant.EXACT for value in plain):
            return None
        if pa.types.is_floating(piece.type) and pc.any(pc.is_nan(piece)).as_py():
            return None
    return where_qdrant.WHOLE if is_whole else where_qdrant.NUMBER


def _points(
    reader: PartReader, fields: dict[str, tuple[str, str]]
) -> Iterator[tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]]:
    """Numbers, vectors and values of all rows; a missing value is left out."""
    pieces = {name: reader.rows_of_columns.pieces(column) for column, (name, _) in fields.items()}
    vectors = reader.vectors()
    for place, (part, row_N) in enumerate(zip(reader.parts, reader.live, strict=True)):
        if not len(row_N):
            continue
        number_N, vector_NM = (part.number << ROW_BITS) + row_N, next(vectors)
        values: dict[str, list[Any]] = {}
        for name, found in pieces.items():
            piece = found[place]
            values[name] = [None] * len(row_N) if piece is None else piece.to_pylist()
        for start in range(0, len(row_N), _BATCH):
            some = slice(start, start + _BATCH)
            payloads: list[dict[str, Any]] = [{} for _ in number_N[some]]
            for name, listed in values.items():
                for payload, value in zip(payloads, listed[some], strict=True):
                    if value is not None:
                        payload[name] = int(value) if isinstance(value, bool) else value
            yield number_N[some], np.asarray(vector_NM[some]), payloads


def _recall(reader: PartReader, searcher: AnnSearcher) -> tuple[float, int]:
    """Of the nearest rows of some rows, the share that is found; a row that is as near as they are counts as
    one of them, and the row itself does not count."""
    row_S = np.unique(np.linspace(0, len(reader) - 1, min(_SAMPLE, len(reader))).astype(np.int64))
    k = min(NEAREST, len(reader) - 1)
    if k < 1:
        return 1.0, 0
    query_SM = reader.vectors_at(row_S)
    exact = search_parts(query_SM, reader.vectors(), len(reader), k + 1, reader.norms())
    shares = []
    others = searcher.nearest(query_SM, k + 1)
    others = [found_C[found_C != own] for found_C, own in zip(others, row_S, strict=True)]
    for place, score_C in enumerate(searcher.rescored(query_SM, others)):
        bar = exact.score[place][exact.index[place] != row_S[place]][k - 1]
        shares.append(min(k, int((score_C.astype(np.float32) >= bar).sum())) / k)
    return float(np.mean(shares)), len(row_S)
