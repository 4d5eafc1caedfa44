"""The calibration of an index whose vectors are stored as codes.

``codec-00005.safetensors`` holds what its codec learned once from the vectors of the index; the manifest
names the file, its size and CRC-32, the codec and the seed. Later rows are coded with the same calibration,
so all codes of an index mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from moembed.files import write_whole
from moembed.search.codecs import Codec, codec_kind
from moembed.search.index_parts import DamagedPartError, file_stamp, require_same
from moembed.types import UserError


def write_codec(path: Path, number: int, codec: Codec, name: str, seed: int, advice: str) -> dict[str, Any]:
    """Write a calibration under a number that no version of the index has used; what the manifest says of it.

    Raises:
        UserError: a full or read-only disk.
    """
    file = path / f"codec-{number:05d}.safetensors"
    stamp = write_arrays(file, codec.state(), advice)
    return {"name": name, "seed": seed, "file": file.name, "stamp": stamp}


def read_codec(path: Path, manifest: Mapping[str, Any]) -> Codec | None:
    """The codec of an index; None: it holds float32.

    Raises:
        UserError: its calibration is missing, was changed, or is of a codec that this version does not have.
    """
    entry = manifest.get("codec")
    if entry is None:
        return None
    kind, _ = codec_kind(entry["name"])
    try:
        return kind.from_state(read_arrays(path / entry["file"], entry["stamp"]))
    except DamagedPartError as error:
        raise UserError(
            f"{error.what}: the codes of {path} say nothing without their calibration; put a copy of it "
            "back, or make the index again"
        ) from None


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray], advice: str) -> str:
    """Write named arrays, whole or not at all; the stamp of the file.

    Raises:
        UserError: a full or read-only disk.
    """
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    write_whole(file, lambda opened: opened.write(content), advice)
    return file_stamp(file)


def read_arrays(file: Path, stamp: str) -> dict[str, np.ndarray]:
    """
    Raises:
        DamagedPartError: the file is missing or was changed.
    """
    require_same(file, stamp)
    try:
        return load(file.read_bytes())
    except (OSError, SafetensorError) as error:
        raise DamagedPartError(file, str(error)) from None
