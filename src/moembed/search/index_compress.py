"""An index of floats becomes one of codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moembed.files import locked
from moembed.search.binariser import TRAINING_ROWS
from moembed.search.codecs import codec_kind, fit_codec
from moembed.search.index_codec import read_codec, write_codec
from moembed.search.index_ids import Keys
from moembed.search.index_manifest import CODED, IN_ORDER, commit, parts_of, read_manifest
from moembed.search.index_reader import PartReader
from moembed.search.index_update import IndexUpdate
from moembed.search.part_writer import ADVICE, PartWriter
from moembed.types import UserError


@dataclass(frozen=True, slots=True)
class CompressSummary:
    """What `moembed index compress` did.

    Attributes:
        done: False where the index was in this codec already.
        bytes_before, bytes_after: of a vector.
        calibration_bytes: of the file that all codes of the index share.
    """

    path: Path
    codec: str
    done: bool
    rows: int
    bytes_before: int
    bytes_after: int
    calibration_bytes: int

    def __str__(self) -> str:
        if not self.done:
            return f"{self.path} holds codes of {self.codec} already: nothing to do"
        return (
            f"{self.path}: {self.rows} vectors of {self.bytes_before} bytes became {self.codec} codes of "
            f"{self.bytes_after}, and {self.calibration_bytes} bytes of calibration for all of them"
        )


def compress_index(path: str | Path, name: str, *, seed: int = 0) -> CompressSummary:
    """Store the vectors of an index in the codec ``name``, which learns from them alone.

    The floats are gone then; readers of the version before keep it until they close it.

    Raises:
        UserError: no finished index, one of other codes, an update that is under way, a codec that cannot be
            made of these vectors, a text without a token, a full disk, another process that writes there: the
            index is as it was.
    """
    path = Path(path)
    codec_kind(name)
    with locked(path):
        manifest = _ready(path, name)
        dim, column = manifest["dim"], manifest.get("column")
        entry = manifest.get("codec")
        if entry is not None:
            codec = read_codec(path, manifest)
            assert codec is not None
            return _summary(path, manifest, codec.bytes_per_vector, done=False)
        parts = parts_of(manifest)
        reader = PartReader(path, tuple(parts), dim, column)
        codec = fit_codec(name, _sample(reader, seed), seed)
        number = manifest["next_number"]
        entry = write_codec(path, number, codec, name, seed, ADVICE)
        floats, codes = PartWriter(path, dim, column, 0), PartWriter(path, dim, column, number, codec)
        coded = []
        for part in parts:
            rows, keys = floats.rows(part)
            assert keys is not None
            live_K = part.live_rows()
            if len(live_K):
                ids = [keys.ids[row] for row in live_K.tolist()]
                some = codes.stored(np.asarray(floats.vectors(part))[live_K], ids)
                kept = [rows[row] for row in live_K.tolist()]
                left = Keys(ids, keys.text_N[live_K], keys.row_N[live_K])
                coded.append(codes.write(kept, left, some, part.truncated, part.source))
        changed = {
            "format_version": CODED,
            "codec": entry,
            "version": manifest["version"] + 1,
            "next_number": max(codes.next_number, number + 1),
            "parts": [part.as_json() for part in coded],
        }
        commit(path, {**manifest, **changed}, ADVICE)
        return _summary(path, {**manifest, **changed}, codec.bytes_per_vector, done=True)


def _summary(path: Path, manifest: dict[str, Any], bytes_per_vector: int, done: bool) -> CompressSummary:
    entry = manifest["codec"]
    size = (path / entry["file"]).stat().st_size
    return CompressSummary(
        path, entry["name"], done, manifest["rows"], 4 * manifest["dim"], bytes_per_vector, size
    )


def _ready(path: Path, name: str) -> dict[str, Any]:
    """The manifest of a finished index of floats, or of codes of this name."""
    manifest = read_manifest(path)
    if manifest is None:
        raise UserError(f"{path} is not an index: it has no manifest.json")
    if manifest["format_version"] == IN_ORDER:
        IndexUpdate(path).commit()
        manifest = read_manifest(path)
        assert manifest is not None
    if not manifest["complete"] or manifest["pending"]:
        raise UserError(
            f"an update of {path} is under way: finish it with the command that started it, then compress"
        )
    require_codec(path, name)
    return manifest


def require_codec(path: Path, name: str, engine: str | None = None) -> None:
    """Refuse a codec that an index, where there is one, cannot be stored in, whatever its rows will be.

    Args:
        engine: that it is about to get; None: it keeps its own.

    Raises:
        UserError: a multi-vector index, one that an approximate engine searches, one of other codes.
    """
    manifest = read_manifest(path) or {}
    if "multivector" in manifest:
        raise UserError(f"{path} has the vectors of all tokens, and codecs are for one vector of a row")
    if "ann" in manifest and engine != "exact":
        raise UserError(
            f"{path} is searched by {manifest['ann']['engine']}, which takes floats, not codes: run moembed "
            "index on it with --engine exact first"
        )
    there = manifest.get("codec")
    if there is not None and there["name"] != name:
        raise UserError(
            f"{path} holds codes of {there['name']}, from which no {name} can be made: make another index of "
            "its documents"
        )


def _sample(reader: PartReader, seed: int) -> np.ndarray:
    """The vectors that a codec learns from: all, or so many at random."""
    row_K = np.arange(len(reader))
    if len(row_K) > TRAINING_ROWS:
        row_K = np.sort(np.random.default_rng(seed).permutation(row_K)[:TRAINING_ROWS])
    return reader.vectors_at(row_K)
