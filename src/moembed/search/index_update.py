"""Changing an index: rows are added, replaced by id or deleted, and all of it becomes visible in one commit.

New rows are written in blocks as parts that only the update knows (``pending`` in the manifest): a killed
update goes on where it stopped, and readers see the version before until the commit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moembed.encoding import TokenVectors, Vectors
from moembed.search.fde import Fde, FdeConfig
from moembed.search.index_codec import read_codec
from moembed.search.index_ids import Keys, made_keys, row_keys, stored_keys
from moembed.search.index_manifest import (
    FORMAT,
    IN_ORDER,
    MULTI_VECTOR,
    UPDATED,
    Part,
    commit,
    parts_of,
    read_manifest,
    tidy,
)
from moembed.search.index_parts import require_same
from moembed.search.index_repair import Embed, damage, repaired
from moembed.search.index_writer import require_free_folder
from moembed.search.part_writer import ADVICE, PartWriter
from moembed.search.token_parts import as_tokens
from moembed.search.vectors import text_keys
from moembed.types import UserError

# What an update must have in common with the index; other fields, such as where the model lies, may change.
_SAME = ("space_id", "dim", "role", "prompt_name", "column", "multivector")
_OF_ONE_SOURCE = ("stamps", "rows", "source", "source_bytes", "source_mtime_ns", "truncated")
_KEPT = (
    "the index is as it was, and the blocks embedded so far are kept: correct this and run the command again"
)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a row stands, and what it holds."""

    part: Part
    row: int
    text_key: bytes
    row_key: bytes


@dataclass(frozen=True, slots=True)
class _New:
    """A row to be written, with its keys; ``old`` has its vector already, if its text is the same."""

    row: dict[str, Any]
    text: str
    id: str
    text_key: bytes
    row_key: bytes
    old: _Place | None


class IndexUpdate:
    """One update of the index at ``path``, or its first version. Hold ``files.locked`` around it.

    Args:
        fields: of the manifest: ``space_id``, ``dim``, ``column``, …; None: those of the index.
        source: the name of the file that rows come from.
        embed: texts to vectors.

    Attributes:
        id_column: the column of the ids; None: they are made of the texts.
        counts: rows ``added``, ``changed``, ``unchanged``, ``deleted`` and texts ``embedded``, ``truncated``.

    Raises:
        UserError: no index and no fields for one, an index of other settings, an unfinished folder of
            `moembed embed`, a damaged part that cannot be made again.
    """

    def __init__(
        self, path: Path, fields: dict[str, Any] | None = None, source: str | None = None,
        embed: Embed | None = None,
    ) -> None:  # fmt: skip
        self.path, self._source, self._embed = path, source, embed
        self._manifest = _started(path, fields)
        self.id_column: str | None = self._manifest.get("id_column")
        self.counts = dict.fromkeys(("added", "changed", "unchanged", "deleted", "embedded", "truncated"), 0)
        self._parts, self._pending = parts_of(self._manifest), parts_of(self._manifest, "pending")
        self.is_unfinished = not self._manifest["complete"]
        self.is_new = self.is_unfinished and not self._pending
        # what the index holds until the commit; None: blocks cannot be kept before it
        self._before: list[Part] | None = list(self._parts)
        next_number = 1 + max((part.number for part in self._parts), default=-1)
        self._writer = PartWriter(
            path,
            self._manifest["dim"],
            self._manifest.get("column"),
            self._manifest.get("next_number", next_number),
            read_codec(path, self._manifest),
            _fde(self._manifest),
        )
        if embed is not None:
            self._repair(embed)
        self._differs = self._parts != self._before  # from the index on disk
        if self._manifest["format_version"] == IN_ORDER:
            self._take_over()
        self._here = self._places(self._parts)
        self._waiting = self._places(self._pending)
        self._of_text: dict[bytes, _Place] = {}  # of blocks whose rows had other ids
        self._gone: dict[str, _Place] = {}  # rows of the index that the commit deletes
        self._used: dict[int, list[int]] = {}  # rows of pending parts that the commit publishes
        self._buffer: list[_New] = []
        self._mapped: dict[int, np.ndarray | TokenVectors] = {}  # of parts that hold some we need

    def __len__(self) -> int:
        """Rows of the index before the commit."""
        return len(self._here)

    def ids(self) -> Iterable[str]:
        """Of the rows of the index before the commit."""
        return self._here.keys()

    def set_id_column(self, column: str | None) -> None:
        """Of an index without rows; vectors of blocks with other ids are found by their texts."""
        self.id_column = self._manifest["id_column"] = column
        self._of_text = {place.text_key: place for place in self._waiting.values()}
        self._waiting = {}

    def add(self, rows: Sequence[dict[str, Any]], texts: Sequence[str], ids: Sequence[str]) -> None:
        """Rows that the index holds from the commit on; those that it holds already are left as they are.

        Raises:
            UserError: vectors that are not finite, a full or read-only disk: the index is as it was.
        """
        keys = zip(text_keys(texts).tolist(), row_keys(rows).tolist(), strict=True)
        for row, text, known, (text_key, row_key) in zip(rows, texts, ids, keys, strict=True):
            here, waiting = self._here.get(known), self._waiting.get(known)
            if here is not None and here.row_key == row_key:
                self.counts["unchanged"] += 1
                continue
            self.counts["added" if here is None else "changed"] += 1
            if here is not None:
                self._gone[known] = here
            if waiting is not None and waiting.row_key == row_key:
                self._used.setdefault(waiting.part.number, []).append(waiting.row)
                continue
            known_places = (here, waiting, self._of_text.get(text_key))
            old = next((place for place in known_places if place and place.text_key == text_key), None)
            self._buffer.append(_New(row, text, known, text_key, row_key, old))
        while len(self._buffer) >= self._manifest["block_rows"]:
            self._write_block()

    def delete(self, ids: Iterable[str]) -> None:
        """
        Raises:
            UserError: an id that the index does not hold; nothing is deleted.
        """
        ids = list(dict.fromkeys(ids))
        if missing := [known for known in ids if known not in self._here]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"the index {self.path} has no row with the id {missing[0]!r}{more}: nothing was deleted"
            )
        self._gone |= {known: self._here[known] for known in ids}
        self.counts["deleted"] += len(ids)

    def commit(self) -> int:
        """Make the update visible: the number of rows from now on. Without a change, nothing is written.

        Raises:
            UserError: a full or read-only disk, a damaged part: the index is as it was.
        """
        while self._buffer:
            self._write_block()
        if self._manifest["complete"] and not (self._differs or self._gone or self._used or self._pending):
            tidy(self.path)
            return len(self)
        gone: dict[int, list[int]] = {}
        for place in self._gone.values():
            gone.setdefault(place.part.number, []).append(place.row)
        parts = [part.without(gone.get(part.number, ())) for part in self._parts]
        for part in self._pending:
            used = set(self._used.get(part.number, ()))
            parts.append(part.without(row for row in range(part.rows) if row not in used))
            self.counts["truncated"] += part.truncated if used else 0
        parts = self._writer.merged(parts, self._manifest["block_rows"])
        rows = sum(part.live for part in parts)
        self._manifest |= {"complete": True, "version": self._manifest["version"] + 1, "rows": rows}
        self._save(parts, [], ADVICE)
        return rows

    def _write_block(self) -> None:
        """Write the first rows of the buffer as a pending part, with the vectors that are known already."""
        block = self._buffer[: self._manifest["block_rows"]]
        missing = [new.text for new in block if new.old is None]
        truncated = 0
        found: Vectors | TokenVectors | None = None
        if missing:
            assert self._embed is not None
            found = self._embed(missing)
            truncated = found.truncated
        stored = self._stored(block, found)
        rows = [new.row for new in block]
        text_N = np.array([new.text_key for new in block], dtype="S16")
        row_N = np.array([new.row_key for new in block], dtype="S16")
        keys = Keys([new.id for new in block], text_N, row_N)
        part = self._writer.write(rows, keys, stored, truncated, self._source)
        self._pending.append(part)
        self._used[part.number] = list(range(part.rows))
        self.counts["embedded"] += len(missing)
        if self._before is not None:
            self._save(self._before, self._pending, _KEPT)
        del self._buffer[: len(block)]

    def _stored(
        self, block: Sequence[_New], found: Vectors | TokenVectors | None
    ) -> np.ndarray | TokenVectors:
        """What is stored of the rows of a block: the vectors found now, and those that are there already."""
        if self._writer.fde is not None:
            fresh = iter(found if isinstance(found, TokenVectors) else ())
            return as_tokens([next(fresh) if new.old is None else self._vector(new.old) for new in block])
        stored_NB = self._writer.empty(len(block))
        if isinstance(found, Vectors):
            places = [place for place, new in enumerate(block) if new.old is None]
            stored_NB[places] = self._writer.stored(found.array, [block[place].id for place in places])
        for place, new in enumerate(block):
            if new.old is not None:
                stored_NB[place] = self._vector(new.old)
        return stored_NB

    def _vector(self, place: _Place) -> np.ndarray:
        """The vector of a row, or its token vectors."""
        number = place.part.number
        if number not in self._mapped:
            self._mapped[number] = self._writer.payload(place.part)
        return self._mapped[number][place.row]

    def _save(self, parts: Sequence[Part], pending: Sequence[Part], advice: str) -> None:
        manifest = {
            **self._manifest,
            "next_number": self._writer.next_number,
            "parts": [part.as_json() for part in parts],
            "pending": [part.as_json() for part in pending],
        }
        commit(self.path, manifest, advice)

    def _repair(self, embed: Embed) -> None:
        def counted(texts: list[str]) -> Any:
            self.counts["embedded"] += len(texts)
            return embed(texts)

        self._parts = repaired(self._writer, self._parts, self._source, counted)
        sound = [part for part in self._pending if damage(self._writer, part)[1] is None]
        if lost := len(self._pending) - len(sound):
            warnings.warn(
                f"{lost} blocks of a killed update are damaged: their texts are embedded again", stacklevel=4
            )
        self._pending = sound

    def _take_over(self) -> None:
        """Write the parts of a folder of `moembed embed` anew, with ids and terms."""
        self.id_column, keys = made_keys(self.path, self._parts, self._manifest.get("column"))
        self._parts = [
            self._writer.write(
                self._writer.rows(part)[0], made, self._writer.vectors(part), part.truncated, part.source
            )
            for part, made in zip(self._parts, keys, strict=True)
        ]
        for name in _OF_ONE_SOURCE:
            self._manifest.pop(name, None)
        self._manifest |= {"format_version": UPDATED, "version": 0, "id_column": self.id_column}
        self._before, self._differs = None if self._differs else list(self._parts), True

    def _places(self, parts: Sequence[Part]) -> dict[str, _Place]:
        places: dict[str, _Place] = {}
        for part in parts:
            require_same(*part.files(self.path)[0])
            keys = stored_keys(self.path, part)
            assert keys is not None
            of_text, of_row = keys.text_N.tolist(), keys.row_N.tolist()
            for row in part.live_rows().tolist():
                places[keys.ids[row]] = _Place(part, row, of_text[row], of_row[row])
        return places


def _fde(manifest: dict[str, Any]) -> Fde | None:
    """The encoding of a multi-vector index."""
    config = manifest.get("multivector")
    return Fde(FdeConfig.from_json(config)) if config else None


def _started(path: Path, fields: dict[str, Any] | None) -> dict[str, Any]:
    """The manifest that is there, with new ``fields``, or that of a new index."""
    found = read_manifest(path)
    if found is None:
        if fields is None:
            raise UserError(f"{path} is not an index: it has no manifest.json")
        require_free_folder(path)
        number = MULTI_VECTOR if fields.get("multivector") else UPDATED
        identity = {"format": FORMAT, "format_version": number, "version": 0, "complete": False}
        return {**identity, "id_column": None, **fields, "next_number": 0, "parts": [], "pending": []}
    if found["format_version"] == IN_ORDER and not found["complete"]:
        raise UserError(
            f"{path} is unfinished, and `moembed embed` or an earlier moembed started it: finish it with the "
            "command that started it, or remove the folder"
        )
    if fields is None:
        if not found["complete"]:
            raise UserError(
                f"the index {path} is unfinished: run the command that started it again to finish it"
            )
        return {"block_rows": 4096, **found}
    differing = [
        f"{name} is {found.get(name)!r} there and {fields.get(name)!r} here"
        for name in _SAME
        if found.get(name) != fields.get(name)
    ]
    if differing:
        raise UserError(
            f"{path} was made with other settings ({'; '.join(differing)}): "
            "repeat the first settings, or choose another folder"
        )
    return {**found, **fields}
