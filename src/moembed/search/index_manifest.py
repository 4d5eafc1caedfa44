"""The manifest of an index folder: the parts of a version, their deleted rows, and who still reads it.

A version of an index is one file, ``manifest.json``. It names parts that never change once they are written,
and says which of their rows are deleted. A writer adds parts under new names and then puts a new manifest in
the place of the old one: that is the commit. A process that is killed before leaves the old version, with
files that the next writer removes.

A reader holds a shared lock on the manifest that it opened. The writer keeps that manifest under another
name, ``.manifest-SERIAL.json``, and removes no file of it while the lock is held, so a reader sees one
version for as long as it is open.

Format version 1 has no versions and no deleted rows: its parts are the blocks of one source, in order.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moembed.files import write_json, writing
from moembed.search.index_parts import part_paths
from moembed.types import UserError

FORMAT = "moembed-index"
# format versions: blocks of one source; rows that are updated by id; their vectors are codes
IN_ORDER, UPDATED, CODED = 1, 2, 3
_OURS = re.compile(
    r"part-\d{5,}\.(parquet|npy|terms\.npz)|(codec|bridge)-\d{5,}\.safetensors|\.manifest-\d+\.json|\..*\.tmp"
)
_STAMP = re.compile(r"\d+-[0-9a-f]{8}")
_ANN = re.compile(r"ann-\d{5,}")  # folders of approximate engines, see ``ann``
_OLD_MANIFEST = re.compile(r"\.manifest-\d+\.json")


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of an index in files of their own.

    Attributes:
        number: of its files.
        rows: rows that are stored, the deleted ones too.
        stamps: size and CRC-32 of its files: rows, vectors and, where there are any, terms; None: not known.
        deleted_N: which rows are deleted, ``(rows,)`` of bool; None: none of them.
        truncated: texts that were cut when they were embedded for this part.
        source: the name of the file that the rows came from.
    """

    number: int
    rows: int
    stamps: tuple[str | None, ...] = (None, None)
    deleted_N: np.ndarray | None = None
    truncated: int = 0
    source: str | None = None

    @property
    def live(self) -> int:
        """Rows that are not deleted."""
        return self.rows - (0 if self.deleted_N is None else int(self.deleted_N.sum()))

    def live_rows(self) -> np.ndarray:
        """Numbers of the rows that are not deleted."""
        return np.arange(self.rows) if self.deleted_N is None else np.flatnonzero(~self.deleted_N)

    def without(self, row_K: Iterable[int]) -> Part:
        """The part with more rows deleted."""
        deleted_N = np.zeros(self.rows, bool) if self.deleted_N is None else self.deleted_N.copy()
        deleted_N[np.fromiter(row_K, dtype=np.int64)] = True
        return replace(self, deleted_N=deleted_N)

    def files(self, folder: Path) -> list[tuple[Path, str | None]]:
        """Its files, each with its stamp: rows, vectors and, where there are any, terms."""
        return list(zip(part_paths(folder, self.number), self.stamps, strict=False))

    def as_json(self) -> dict[str, Any]:
        deleted = None if self.deleted_N is None or not self.deleted_N.any() else _packed(self.deleted_N)
        return {
            "number": self.number,
            "rows": self.rows,
            "stamps": list(self.stamps),
            "deleted": deleted,
            "truncated": self.truncated,
            "source": self.source,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Part:
        deleted_N = None if value["deleted"] is None else _unpacked(value["deleted"], value["rows"])
        return cls(
            value["number"],
            value["rows"],
            tuple(value["stamps"]),
            deleted_N,
            value["truncated"],
            value["source"],
        )


def _packed(flag_N: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.packbits(flag_N).tobytes())).decode("ascii")


def _unpacked(text: str, rows: int) -> np.ndarray:
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.unpackbits(bits, count=rows).astype(bool)


def parts_of(manifest: dict[str, Any], field: str = "parts") -> list[Part]:
    """The parts of a manifest of either format version; ``pending`` are those of an update under way."""
    if manifest["format_version"] >= UPDATED:
        return [Part.from_json(part) for part in manifest[field]]
    if field != "parts":
        return []
    stamps = manifest.get("stamps") or [None] * len(manifest["parts"])
    return [
        Part(number, rows, tuple(stamp or (None, None)), source=manifest.get("source"))
        for number, (rows, stamp) in enumerate(zip(manifest["parts"], stamps, strict=True))
        if rows is not None
    ]


def index_folder(path: Path) -> Path:
    """The folder of the index that a run folder holds; any other folder as it is."""
    is_run = not (path / "manifest.json").exists() and (path / "index" / "manifest.json").exists()
    return path / "index" if is_run else path


def read_manifest(path: Path) -> dict[str, Any] | None:
    """None where there is none.

    Raises:
        UserError: another kind of manifest, one of a version that is not known, or a damaged one.
    """
    try:
        content = (path / "manifest.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _parsed(path / "manifest.json", content)


def _parsed(file: Path, content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{file.parent} is not an index: its manifest.json is of another kind")
    found = manifest.get("format_version")
    if found not in (IN_ORDER, UPDATED, CODED):
        raise UserError(
            f"the index {file.parent} has format version {found}, this moembed reads up to {CODED}: "
            "read it with the moembed that made it, or make it again"
        )
    if found >= UPDATED:
        sound, check = manifest.pop("checksum", None) == _checksum(manifest), "its own checksum"
    else:
        sound, check = _fits(manifest), "itself"
    if not sound:
        raise UserError(
            f"{file} is damaged (it does not agree with {check}): "
            "put a copy of it back, or make the index again"
        )
    return manifest


def _fits(manifest: dict[str, Any]) -> bool:
    """Whether a manifest of format version 1, which has no checksum, has the fields of one."""
    parts, stamps = manifest.get("parts"), manifest.get("stamps") or []
    return (
        "checksum" not in manifest
        and isinstance(manifest.get("space_id"), str)
        and type(manifest.get("dim")) is int
        and isinstance(manifest.get("complete"), bool)
        and isinstance(parts, list)
        and all(rows is None or (type(rows) is int and rows > 0) for rows in parts)
        and manifest.get("rows") == sum(rows or 0 for rows in parts)
        and isinstance(stamps, list)
        and len(stamps) in (0, len(parts))
        and all(stamp is None or _is_stamp(stamp) for stamp in stamps)
    )


def _is_stamp(stamp: Any) -> bool:
    return (
        isinstance(stamp, list)
        and len(stamp) == 2
        and all(isinstance(one, str) and _STAMP.fullmatch(one) for one in stamp)
    )


def _checksum(manifest: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(manifest, sort_keys=True).encode()):08x}"


def open_version(path: Path) -> tuple[dict[str, Any], BinaryIO] | None:
    """The manifest, and the open file whose shared lock keeps the files of this version; None: no index.

    Closing the file ends the lock. On a disk without locks a writer may remove what is being read: the reader
    then says which file is gone.
    """
    file = path / "manifest.json"
    while True:
        try:
            opened = file.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            return None
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_SH)
        try:
            # a writer that committed between our two calls may have removed its files already
            if file.exists() and os.path.samestat(os.fstat(opened.fileno()), file.stat()):
                return _parsed(file, opened.read()), opened
        except BaseException:
            opened.close()
            raise
        opened.close()


def commit(path: Path, manifest: dict[str, Any], advice: str) -> None:
    """Make ``manifest`` the version that readers open from now on; then remove what nobody can read any more.

    Raises:
        UserError: the disk is full or not writable; the version before stays.
    """
    file = path / "manifest.json"
    with writing(file, advice):
        _sync(path)  # the names of the new parts are on disk before a manifest names them
        before = read_manifest(path)
        kept, serial = before is None, 0
        if before is not None:
            serial = before.get("serial", 0)
            old = path / f".manifest-{serial}.json"
            with suppress(OSError):  # of a disk without hard links: then nothing is removed below
                old.unlink(missing_ok=True)
                os.link(file, old)
                kept = True
    manifest = {**manifest, "serial": serial + 1}
    write_json(file, {**manifest, "checksum": _checksum(manifest)}, advice)
    with suppress(OSError):  # the commit is done, whatever happens now
        _sync(path)
    if kept:
        tidy(path)


def tidy(path: Path) -> None:
    """Remove the files that neither the manifest nor a version with an open reader names, where possible."""
    with suppress(OSError, UserError):
        _remove_unread(path)


def _remove_unread(path: Path) -> None:
    manifest = read_manifest(path)
    assert manifest is not None
    used = _names(manifest)
    unread: list[BinaryIO] = []
    try:
        for file in sorted(path.iterdir()):
            if not _OLD_MANIFEST.fullmatch(file.name):
                continue
            opened: BinaryIO = file.open("rb")
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                unread.append(opened)  # held until its files are gone: whoever waits for it looks again
            except OSError:
                used |= {file.name, *_names(_parsed(file, opened.read()))}
                opened.close()
        for file in sorted(path.iterdir()):
            if file.name in used:
                continue
            if _OURS.fullmatch(file.name):
                file.unlink(missing_ok=True)
            elif _ANN.fullmatch(file.name):
                shutil.rmtree(file)
    finally:
        for held in unread:
            held.close()


def _names(manifest: dict[str, Any]) -> set[str]:
    parts = parts_of(manifest) + parts_of(manifest, "pending")
    names = {file.name for part in parts for file in part_paths(Path(), part.number)}
    codec = [manifest["codec"]] if "codec" in manifest else []
    names |= {entry["file"] for entry in codec + manifest.get("bridges", [])}
    return names | {manifest["ann"]["folder"]} if "ann" in manifest else names


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
