"""A new model queries the codes of an old one: backward-compatible binarisation.

The index holds codes of recurrent binarisation. A bridge is learned from them and from the new model's
vectors of some of its texts: ``unit(A x + c)`` is the direction of a new vector x among the old ones, and old
W and R make a code of it that is comparable with the old codes. Neither the old model nor its floats are
needed, and no document is embedded again but those that the bridge learns from. The manifest declares which
space may search over which bridge; all other spaces are refused as before.

Source: Gan et al. (2023), section on backward-compatible training; there the whole binariser of the new model
is trained against the old codes, here a matrix before the old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moembed.encoding import Bar, TextEncoder, cut_texts, no_bar
from moembed.files import locked
from moembed.search.binariser import Bebr, BebrSymmetric, unit
from moembed.search.exact import top_k
from moembed.search.index_codec import read_arrays, read_codec, write_arrays
from moembed.search.index_manifest import commit, parts_of, read_manifest
from moembed.search.index_parts import DamagedPartError
from moembed.search.index_reader import PartReader
from moembed.search.part_writer import ADVICE
from moembed.types import UserError

ROWS = 20_000  # texts that are embedded by the new model, at most
_KEPT_OUT = 10  # of so many rows one is not learned from, but looked at


@dataclass(frozen=True, slots=True)
class Bridge:
    """Vectors of another model -> vectors of length 1 in the space of the index."""

    into_MK: np.ndarray
    shift_M: np.ndarray
    codec: Bebr

    def vectors(self, new_NK: np.ndarray) -> np.ndarray:
        direction_NM = unit(unit(new_NK) @ self.into_MK.T + self.shift_M)
        return self.codec.place(direction_NM)


@dataclass(frozen=True, slots=True)
class BridgeSummary:
    """What `moembed index bridge` did.

    Attributes:
        rows: texts that the new model embedded.
        looked_at: of them those that the bridge did not learn from.
        found_first: share of these whose own row is the nearest of all ``rows``.
        truncated: texts that were longer than the new model reads.
    """

    path: Path
    space_id: str
    rows: int
    looked_at: int
    found_first: float
    truncated: int

    def __str__(self) -> str:
        return (
            f"{self.path} can be searched with the new model, too: learned from {self.rows - self.looked_at} "
            f"texts; of {self.looked_at} others, {self.found_first:.1%} find their own row first"
            + (f"; {cut_texts(self.truncated)}" if self.truncated else "")
        )


def bridge_index(
    path: str | Path,
    model: TextEncoder,
    *,
    model_path: str | None = None,
    seed: int = 0,
    progress: Bar = no_bar,
) -> BridgeSummary:
    """Let ``model`` search the codes of another one, see above; the rows and their codes stay as they are.

    Raises:
        UserError: no finished index of bebr codes with texts, fewer than 20 rows, the model that made it, a
            full disk, another process that writes there: the index is as it was.
    """
    path = Path(path)
    with locked(path):
        manifest, codec = _ready(path)
        role = manifest.get("role")
        space_id = model.space(role=role)
        if space_id == manifest["space_id"]:
            raise UserError(f"the model made {path} itself: it needs no bridge")
        values = BebrSymmetric.from_state(codec.state())
        reader = PartReader(path, tuple(parts_of(manifest)), manifest["dim"], manifest["column"], values)
        row_K = np.random.default_rng(seed).permutation(len(reader))[:ROWS]
        if len(row_K) < 2 * _KEPT_OUT:
            raise UserError(
                f"{path} has {len(row_K)} rows, and a bridge is learned from {2 * _KEPT_OUT} or more"
            )
        texts = [str(row.get(manifest["column"]) or "") for _, row in reader.rows(row_K, with_ids=False)]
        with progress("embedding texts", len(texts)) as advance:
            found = model.vectors(texts, role=role, progress=advance)
        new_NK, value_NM = unit(found.array), reader.vectors_at(row_K)
        kept_out = np.arange(len(row_K)) % _KEPT_OUT == 0
        bridge = _learned(new_NK[~kept_out], value_NM[~kept_out], codec, seed)
        query_QM = codec.query(bridge.vectors(new_NK[kept_out]))
        first_Q = top_k(query_QM, codec.place(unit(value_NM)), 1).index[:, 0]
        found_first = float(np.mean(first_Q == np.flatnonzero(kept_out)))
        number = manifest["next_number"]
        file = path / f"bridge-{number:05d}.safetensors"
        stamp = write_arrays(file, {"into_MK": bridge.into_MK, "shift_M": bridge.shift_M}, ADVICE)
        entry = {"space_id": space_id, "model": model_path, "file": file.name, "stamp": stamp}
        others = [one for one in manifest.get("bridges", []) if one["space_id"] != space_id]
        changed = {"bridges": [*others, entry], "next_number": number + 1, "version": manifest["version"] + 1}
        commit(path, {**manifest, **changed}, ADVICE)
        looked_at = int(kept_out.sum())
        return BridgeSummary(path, space_id, len(row_K), looked_at, found_first, found.truncated)


def _learned(new_NK: np.ndarray, value_NM: np.ndarray, codec: Bebr, seed: int) -> Bridge:
    from moembed.search.binariser_training import train_compatible

    matrices = codec.binarise_UMM, codec.restore_UMM
    return Bridge(*train_compatible(new_NK, value_NM, matrices, seed=seed), codec)


def _ready(path: Path) -> tuple[dict[str, Any], Bebr]:
    manifest = read_manifest(path)
    if manifest is None:
        raise UserError(f"{path} is not an index: it has no manifest.json")
    codec = read_codec(path, manifest)
    if not isinstance(codec, Bebr):
        there = "float32" if codec is None else manifest["codec"]["name"]
        raise UserError(
            f"{path} holds {there}, and a bridge leads to codes of bebr: compress it with --codec bebr first"
        )
    if not manifest["complete"] or manifest["pending"]:
        raise UserError(f"an update of {path} is under way: finish it with the command that started it")
    if manifest.get("column") is None:
        raise UserError(f"{path} does not say which column the texts are in: a bridge is learned from them")
    return manifest, codec


def bridge_of(
    path: Path, manifest: Mapping[str, Any], model: TextEncoder, known: dict[str, Bridge] | None = None
) -> Bridge | None:
    """The bridge over which queries of this model may search the index; None: there is none.

    Args:
        known: bridges of this version that were read already, by space; gets the one that is found.

    Raises:
        UserError: its file or the calibration of the codes is missing or was changed.
    """
    entries = manifest.get("bridges", [])
    if not entries:
        return None
    space_id = model.space(role=manifest.get("role"))
    entry = next((one for one in entries if one["space_id"] == space_id), None)
    if entry is None:
        return None
    if known is not None and space_id in known:
        return known[space_id]
    codec = read_codec(path, manifest)
    assert isinstance(codec, Bebr)
    try:
        arrays = read_arrays(path / entry["file"], entry["stamp"])
    except DamagedPartError as error:
        raise UserError(f"{error.what}: make the bridge again with `moembed index bridge`") from None
    found = Bridge(arrays["into_MK"], arrays["shift_M"], codec)
    if known is not None:
        known[space_id] = found
    return found
