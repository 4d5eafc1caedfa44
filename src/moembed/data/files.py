"""Where data lies: local paths, folders, patterns, and object stores through fsspec (``s3://…``, ``hf://…``)."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TextIO, cast

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from moembed.types import UserError

FORMATS = ("jsonl", "csv", "tsv", "parquet")
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
KNOWN = ".jsonl, .csv, .tsv (each also .gz or .zst) or .parquet"


@dataclass(frozen=True, slots=True)
class File:
    """One file of a file system."""

    system: Any  # fsspec.AbstractFileSystem
    path: str

    def __str__(self) -> str:
        return (
            self.path if isinstance(self.system, LocalFileSystem) else self.system.unstrip_protocol(self.path)
        )

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def format(self) -> str:
        """One of ``FORMATS``, or ""."""
        *_, kind = self.name.removesuffix(self._suffix).split(".")
        return kind if kind in FORMATS and not (kind == "parquet" and self._suffix) else ""

    @property
    def stem(self) -> str:
        """The name without what tells the format."""
        return self.name.removesuffix(self._suffix).removesuffix(f".{self.format}")

    @property
    def _suffix(self) -> str:
        return next((suffix for suffix in _COMPRESSIONS if self.name.endswith(suffix)), "")

    def stamp(self) -> list[str]:
        """What changes when the content does: the path, and what the system knows of time, size and tags."""
        return [str(self), str(self.system.checksum(self.path))]

    def open(self) -> BinaryIO:
        """The bytes as they are stored."""
        return cast(BinaryIO, self.system.open(self.path, "rb"))

    @contextmanager
    def text(self) -> Iterator[TextIO]:
        """Decompressed text; bytes that are not UTF-8 become lone surrogates, so that a row can be named."""
        with self.open() as stored, _decompressed(stored, self._suffix) as plain:
            yield io.TextIOWrapper(plain, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _decompressed(stored: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(stored, "rb"))
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(cast(Any, pa.CompressedInputStream(stored, "zstd"))))
    return stored


def find(path: str | Path) -> tuple[File | None, list[File]]:
    """The folder that ``path`` names, if it names one, and the files in it, or the files it names.

    ``path`` is a file, a folder or a pattern (``data/*.jsonl.gz``); files come in order of their names.

    Raises:
        UserError: nothing there, an unknown store, or one that cannot be reached.
    """
    try:
        system, inner = fsspec.url_to_fs(str(path))
        if system.isdir(inner):
            inside = [entry for entry in system.ls(inner, detail=True) if entry["type"] != "directory"]
            # a link counts as what it leads to: the hub's cache has nothing else
            files = [e["name"] for e in inside if e["type"] == "file" or not system.isdir(e["name"])]
            return File(system, inner), _sorted(system, files)
        if system.exists(inner):
            return None, [File(system, inner)]
        found = system.glob(inner) if is_pattern(path) else []
    except Exception as error:  # every store has errors of its own
        raise UserError(f"cannot look into {path}: {' '.join(str(error).split())}") from None
    if not found:
        raise UserError(f"no file matches {path}" if is_pattern(path) else f"no such file or folder: {path}")
    return None, _sorted(system, found)


def is_pattern(path: str | Path) -> bool:
    return any(mark in str(path) for mark in "*?[")


def _sorted(system: Any, paths: Sequence[str]) -> list[File]:
    return [File(system, path) for path in sorted(paths)]
