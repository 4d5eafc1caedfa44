"""Rows -> a JSONL file that is whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from moembed.files import unfinished
from moembed.types import UserError

_SUFFIXES = {".jsonl": None, ".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}


@contextmanager
def jsonl_writer(path: str | Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yields ``write(row)``; the file takes its name when the block ends well and vanishes when it does not.

    Raises:
        UserError: a name that does not end in .jsonl, .jsonl.gz or .jsonl.zst, or a disk that is full or
            not writable.
    """
    path = Path(path)
    suffix = next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), None)
    if suffix is None:
        raise UserError(f"{path} does not end in {', '.join(_SUFFIXES)}")
    with (
        unfinished(path) as part,
        pa.output_stream(str(part), compression=_SUFFIXES[suffix]) as file,
    ):
        yield lambda row: file.write(_line(row))


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=_plain).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair: as an escape it survives
        return json.dumps(row, default=_plain).encode() + b"\n"


def _plain(value: Any) -> str:
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise UserError(f"a value of type {type(value).__name__} has no form in JSON: leave its column out")
