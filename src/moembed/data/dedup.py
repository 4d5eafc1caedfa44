"""Rows without repeated texts: exactly equal by ``text_key``, or nearly equal by MinHash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from moembed.data.columns import ColumnUse, missing_column
from moembed.data.layouts import shards
from moembed.data.pairs import SourceConfig, row_positives
from moembed.data.readers import Row, text_problem
from moembed.data.text_key import normalize, text_key
from moembed.data.writer import jsonl_writer
from moembed.types import UserError

By = Literal["pair", "query", "document"]

_SHINGLE = 5  # characters: not words, for not all scripts put blanks between them
_PERMUTATIONS = 128


class SeenTexts:
    """Texts met so far; about 100 bytes each, with ``near`` about two kilobytes.

    With ``near``, texts whose sets of 5-character shingles have an estimated Jaccard similarity of at least
    ``near`` are the same as well (MinHash of 128 permutations, banded; Broder, 1997). The estimate has a
    standard error of at most 0.05, and banding misses some pairs close to the threshold.
    """

    def __init__(self, near: float | None = None) -> None:
        self.exact_duplicates = 0
        self.near_duplicates = 0
        self._keys: set[bytes] = set()
        self._near = NearTexts(near) if near is not None else None

    def add(self, *texts: str) -> bool:
        """Whether ``texts`` are new; if so they are kept in mind."""
        key = text_key(*texts)
        if key in self._keys:
            self.exact_duplicates += 1
            return False
        self._keys.add(key)
        if self._near:
            sketch = self._near.sketch("\n".join(map(normalize, texts)))
            if any(self._near.similar(sketch, place) for place in self._near.candidates(sketch)):
                self.near_duplicates += 1
                return False
            self._near.insert(sketch)
        return True


class NearTexts:
    """Texts found again by what is nearly equal to them: MinHash, looked up by bands."""

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

    def sketch(self, text: str) -> Any:
        shingles = {text[i : i + _SHINGLE].encode() for i in range(max(1, len(text) - _SHINGLE + 1))}
        sketch = self._library.MinHash(num_perm=_PERMUTATIONS)
        sketch.update_batch(shingles)
        return sketch

    def candidates(self, sketch: Any) -> list[int]:
        """Places, in the order of ``insert``, of texts that may be similar."""
        return self._index.query(sketch)

    def similar(self, sketch: Any, place: int) -> bool:
        return bool(sketch.jaccard(self._kept[place]) >= self._threshold)

    def insert(self, sketch: Any) -> None:
        self._index.insert(len(self._kept), sketch)
        self._kept.append(self._library.LeanMinHash(sketch))


def dedup_file(
    source: SourceConfig,
    out: str | Path,
    by: By = "pair",
    near: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Deduplicated:
    """Copy the rows of ``source`` to the JSONL file ``out``, of equal ones the first, all columns kept.

    Rows are those that training reads. Of a row in BGE layout the positives that were there before are taken
    out of ``pos`` (and of the lists beside it, ``pos_scores`` and others); it goes when none is left.

    Raises:
        UserError: as `moembed.data.layouts.shards`; a row without a text in a column that is compared, unless
            ``source.bad_rows`` skips it; no rows.
    """
    seen, use, done = SeenTexts(near), ColumnUse(), Deduplicated()
    with jsonl_writer(out) as write:
        for shard in shards(source.path, source.split, source.subset):
            for number, row in shard.rows():
                done.rows += 1
                kept = row if isinstance(row, str) else _without_seen(row, source, by, seen, use)
                if isinstance(kept, str):
                    if source.bad_rows == "refuse":
                        raise UserError(f"{shard.where(number)}: {kept}; {source.advice(kept)}")
                    done.skipped += 1
                elif kept:
                    done.kept += 1
                    write(kept)
                if progress:
                    progress(1)
        if not done.kept:
            raise UserError(f"{source.path} holds no usable rows")
    done.exact, done.near = seen.exact_duplicates, seen.near_duplicates
    texts = {source.query, source.document, "pos", "neg"}
    if unused := [column for column in use.unused if column not in texts]:
        done.notes = [f"columns not compared: {', '.join(unused)} (they are kept)"]
    return done


@dataclass(slots=True)
class Deduplicated:
    """Rows read, ``kept`` and ``skipped`` as bad; what was left out as ``exact`` or ``near`` duplicate."""

    rows: int = 0
    kept: int = 0
    exact: int = 0
    near: int = 0
    skipped: int = 0
    notes: list[str] = field(default_factory=list)


def _without_seen(
    row: Row, source: SourceConfig, by: By, seen: SeenTexts, use: ColumnUse
) -> Row | str | None:
    """The row without the positives that were there before, None if nothing is left, or why it is bad."""
    use.see(row)
    query, document = source.query, source.document
    columns = {"pair": [query, document], "query": [query], "document": [document]}[by]
    if source.document in row or by == "query":
        for column in columns:
            if column not in row:
                return missing_column(column, row)
            if problem := text_problem(row[column]):
                return f"column {column!r} {problem}"
        use.used.update(columns)
        return row if seen.add(*(row[column] for column in columns)) else None
    positives = row_positives(row, source)
    if isinstance(positives, str):
        return positives
    column, documents = positives
    checked = [(column, text) for text in documents]
    if by == "pair":
        checked.append((source.query, row[source.query]))
    for name, text in checked:
        if problem := text_problem(text):
            return f"column {name!r} {problem}"
        use.used.add(name)
    if not documents:
        return f"column {column!r} is empty"
    before = (row[source.query],) if by == "pair" else ()
    new = [place for place, text in enumerate(documents) if seen.add(*before, text)]
    if len(new) == len(documents):
        return row
    beside = [name for name in row if name == column or name.startswith(f"{column}_")]
    shorter = {
        name: [row[name][place] for place in new]
        for name in beside
        if isinstance(row[name], list) and len(row[name]) == len(documents)
    }
    return {**row, **shorter, column: [documents[place] for place in new]} if new else None
