"""Rows that were read and checked once, kept as a memory-mapped Arrow file instead of in memory.

The file is ``sources/<hash>.arrow`` in ``$MOEMBED_CACHE`` (default: ``~/.cache/moembed``); the hash covers
the files that were read and the options, and ``<hash>.json`` beside it says which those are. Every file of
the cache may be deleted: it is made again when needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pyarrow as pa
from filelock import FileLock

from moembed.files import cache_folder, reason, unfinished
from moembed.types import UserError

IN_MEMORY_BYTES = 64 * 2**20  # a smaller source needs no file
_ADVICE = "MOEMBED_CACHE may name another folder"
_VERSION = 3  # of what is stored

Facts = dict[str, Any]


class Cache:
    """The place of one source's rows; ``key`` is all that they depend on, as JSON."""

    def __init__(self, key: Any) -> None:
        self._key = [_VERSION, key]
        digest = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()[:32]
        self._table = cache_folder() / "sources" / f"{digest}.arrow"
        self._facts = self._table.with_suffix(".json")

    def read(self) -> tuple[pa.Table, Facts] | None:
        """The rows, mapped and not loaded, and the facts stored with them; None if there is no whole file."""
        try:
            facts = json.loads(self._facts.read_text(encoding="utf-8"))["facts"]
            return pa.ipc.open_file(pa.memory_map(str(self._table))).read_all(), facts
        except (OSError, ValueError, pa.ArrowException):
            return None

    def keep(
        self, batches: Iterator[pa.RecordBatch], schema: pa.Schema, facts: Callable[[], Facts]
    ) -> tuple[pa.Table, Facts]:
        """All ``batches`` as a table: in memory if they are small, else streamed into the file.

        Args:
            facts: asked after the last batch, stored beside the rows.

        Raises:
            UserError: the file cannot be written, as when the disk is full.
        """
        kept: list[pa.RecordBatch] = []
        size = 0
        for batch in batches:
            kept.append(batch)
            size += batch.nbytes
            if size > IN_MEMORY_BYTES:
                return self._spill(chain(kept, batches), schema, facts)
        return pa.Table.from_batches(kept, schema).combine_chunks(), facts()

    def _spill(
        self, batches: Iterator[pa.RecordBatch], schema: pa.Schema, facts: Callable[[], Facts]
    ) -> tuple[pa.Table, Facts]:
        try:
            self._table.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._table.with_suffix(".lock")):  # of several processes one writes
                if not self.read():
                    self._write(batches, schema, facts)
        except OSError as error:
            raise UserError(f"cannot write the cache {self._table}: {reason(error)}; {_ADVICE}") from None
        found = self.read()
        assert found is not None
        return found

    def _write(
        self, batches: Iterator[pa.RecordBatch], schema: pa.Schema, facts: Callable[[], Facts]
    ) -> None:
        with unfinished(self._table, _ADVICE) as part:
            with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            self._facts.write_text(json.dumps({"key": self._key, "facts": facts()}), encoding="utf-8")
