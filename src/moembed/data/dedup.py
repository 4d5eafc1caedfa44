"""Which texts say the same: exactly, by a hash of the normalised text, or nearly, by MinHash."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from moembed.data.layouts import plain_rows
from moembed.data.readers import Row, text_problem
from moembed.data.writer import jsonl_writer
from moembed.types import UserError

By = Literal["pair", "query", "document"]

_SHINGLE = 5  # characters: words would not do for scripts that do not write blanks
_PERMUTATIONS = 128


def normalize(text: str) -> str:
    """NFKC, case folded, white space collapsed: what two equal texts have in common."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_hash(*texts: str) -> bytes:
    """128 bits of the normalised texts, in this order."""
    # normalised texts hold no line break, so it can part them
    return hashlib.blake2b("\n".join(map(normalize, texts)).encode(), digest_size=16).digest()


class Seen:
    """Texts met so far; about 100 bytes each, with ``near`` about two kilobytes.

    With ``near``, texts whose sets of 5-character shingles have an estimated Jaccard similarity of at least
    ``near`` are the same as well (MinHash of 128 permutations, banded; Broder, 1997). The estimate has a
    standard error of at most 0.05, and banding misses some pairs close to the threshold.
    """

    def __init__(self, near: float | None = None) -> None:
        self.exact_duplicates = 0
        self.near_duplicates = 0
        self._hashes: set[bytes] = set()
        self._near = _Near(near) if near is not None else None

    def add(self, *texts: str) -> bool:
        """Whether ``texts`` are new; if so they are remembered."""
        digest = text_hash(*texts)
        if digest in self._hashes:
            self.exact_duplicates += 1
            return False
        self._hashes.add(digest)
        if self._near and not self._near.add("\n".join(map(normalize, texts))):
            self.near_duplicates += 1
            return False
        return True


class _Near:
    def __init__(self, threshold: float) -> None:
        if not 0 < threshold < 1:
            raise UserError(f"near {threshold} is not between 0 and 1")
        try:
            import datasketch
        except ImportError:
            raise UserError("near-duplicates need datasketch: pip install 'moembed[data]'") from None
        self._library = datasketch
        self._threshold = threshold
        self._index = datasketch.MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
        self._kept: list[Any] = []

    def add(self, text: str) -> bool:
        shingles = {text[i : i + _SHINGLE].encode() for i in range(max(1, len(text) - _SHINGLE + 1))}
        sketch = self._library.MinHash(num_perm=_PERMUTATIONS)
        sketch.update_batch(shingles)
        if any(sketch.jaccard(self._kept[i]) >= self._threshold for i in self._index.query(sketch)):
            return False
        self._index.insert(len(self._kept), sketch)
        self._kept.append(self._library.LeanMinHash(sketch))
        return True


def dedup_file(
    source: str | Path,
    out: str | Path,
    by: By = "pair",
    near: float | None = None,
    query: str = "query",
    document: str = "document",
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Copy the rows of ``source`` to the JSONL file ``out``, of equal ones the first, all columns kept.

    Returns:
        ``rows`` read, rows ``kept``, ``exact`` and ``near`` duplicates left out.

    Raises:
        UserError: as `moembed.data.layouts.shards`; a row without a text in a column that is compared.
    """
    columns = {"pair": (query, document), "query": (query,), "document": (document,)}[by]
    seen, rows, kept = Seen(near), 0, 0
    with jsonl_writer(out) as write:
        for row in _checked(source, columns):
            rows += 1
            if seen.add(*(row[column] for column in columns)):
                kept += 1
                write(row)
            if progress:
                progress(1)
    return {"rows": rows, "kept": kept, "exact": seen.exact_duplicates, "near": seen.near_duplicates}


def _checked(source: str | Path, columns: tuple[str, ...]) -> Iterator[Row]:
    for number, row in enumerate(plain_rows(source), start=1):
        for column in columns:
            if column not in row:
                found = ", ".join(map(repr, row))
                raise UserError(f"{source}, row {number}: there is no column {column!r}, only {found}")
            if problem := text_problem(row[column]):
                raise UserError(f"{source}, row {number}: column {column!r} {problem}")
        yield row
