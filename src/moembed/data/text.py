"""Plain texts with their languages, streamed from any layout of rows or from .txt files, for pretraining.

Nothing stays in memory but the block at hand, so a corpus may be larger than the memory.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal, NamedTuple

import pyarrow as pa
from pydantic import Field

from moembed.data.columns import ColumnUse
from moembed.data.files import File, find
from moembed.data.layouts import FileShard, Shard, shards
from moembed.data.provenance import Provenance
from moembed.data.readers import Choose, Numbered, text_problem
from moembed.types import UserError

_BLOCK = 2048  # texts that are Python objects at one time
_LINES = (".txt", ".txt.gz", ".txt.zst")


class Text(NamedTuple):
    language: str
    text: str


class TextConfig(Provenance):
    """A file, pattern, folder or data set of texts: see `moembed.data.layouts.shards`; .txt: one per line.

    ``text`` and ``language`` name columns. Rows without a language are in ``default_language``, else in that
    named as the ``subset`` or the file. ``only`` keeps the languages it lists. ``limit`` takes the first good
    texts only. ``bad_rows`` says whether a row without a usable text stops the run or is left out.
    """

    # what a complaint advises; commands that spell the option otherwise replace it
    skip_rows_hint: ClassVar[str] = "set bad_rows=skip to leave such rows out"

    path: str
    text: str = "text"
    language: str = "language"
    default_language: str | None = None
    only: tuple[str, ...] | None = None
    split: str | None = None
    subset: str | None = None
    limit: int | None = Field(None, ge=1)
    bad_rows: Literal["refuse", "skip"] = "refuse"

    def choose(self, columns: Sequence[str]) -> list[str]:
        """Of the columns of a table, those to read; all if there is no text, for the complaint lists them."""
        return [name for name in columns if name in (self.text, self.language) or self.text not in columns]


def read_texts(
    configs: Sequence[TextConfig], note: Callable[[str], None] | None = None
) -> Iterator[list[Text]]:
    """All texts in order, in blocks; ``note`` is told of each config what was not used or left out.

    Raises:
        UserError: missing, damaged or empty file, unknown format or column, a bad row not to be skipped.
    """
    for config in configs:
        use, bad = ColumnUse(), Counter[str]()
        texts = islice(_texts(config, use, bad), config.limit)
        empty = True
        while block := list(islice(texts, _BLOCK)):
            empty = False
            yield block
        if empty:
            languages = f" in {', '.join(config.only)}" if config.only else ""
            raise UserError(f"{config.path} holds no texts{languages}")
        if note:
            for sentence in _notes(config, use, bad):
                note(f"{config.path}: {sentence}")


def _notes(config: TextConfig, use: ColumnUse, bad: Counter[str]) -> list[str]:
    use.used |= {config.text, config.language}
    notes = use.notes({})
    if "language" in config.model_fields_set and config.language not in use.seen:
        notes.append(f"no row has the column {config.language} that language names")
    if count := bad.total():
        notes.append(f"{count:,} bad rows were skipped, the first: {next(iter(bad))}")
    return notes


def _texts(config: TextConfig, use: ColumnUse, bad: Counter[str]) -> Iterator[Text]:
    """The good texts; the others are counted in ``bad``, by what is wrong with the first of them."""

    def choose(columns: Sequence[str]) -> Sequence[str]:
        use.see(columns)
        return config.choose(columns)

    for shard in _shards(config):
        default = config.default_language or config.subset or _name(shard, config.path)
        for number, row in shard.rows(choose):
            if not isinstance(row, str):
                use.see(row)
            found = row if isinstance(row, str) else _text(row, config, default)
            if isinstance(found, Text):
                if config.only is None or found.language in config.only:
                    yield found
            elif config.bad_rows == "refuse":
                raise UserError(f"{shard.where(number)}: {found}; correct it, or {config.skip_rows_hint}")
            else:
                bad[next(iter(bad), f"{shard.where(number)}: {found}")] += 1


def _text(row: dict[str, object], config: TextConfig, default: str) -> Text | str:
    """The text of a row, or why it has none."""
    if config.text not in row:
        raise UserError(
            f"{config.path}: there is no column {config.text!r}, only {', '.join(map(repr, row))}"
        )
    if problem := text_problem(row[config.text]):
        return f"column {config.text!r} {problem}"
    language = row.get(config.language) or default
    return (
        Text(language, str(row[config.text])) if isinstance(language, str) else "the language is not a string"
    )


def _shards(config: TextConfig) -> Sequence[Shard]:
    if config.path.endswith(_LINES):
        return [Lines(file, config.text) for file in find(config.path)[1]]
    return shards(config.path, config.split, config.subset)


def _name(shard: Shard, path: str) -> str:
    """What the texts of a shard are called: its file up to the first dot, or the last part of a path."""
    name = shard.file.name if isinstance(shard, (FileShard, Lines)) else path.rstrip("/").rpartition("/")[2]
    return name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Lines:
    """A .txt file, every line that is not blank a row of one column."""

    file: File
    column: str

    def rows(self, choose: Choose | None = None) -> Iterator[Numbered]:
        try:
            with self.file.text() as lines:
                for number, line in enumerate(lines, start=1):
                    if line := line.strip():
                        yield number, {self.column: line}
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            raise UserError(f"cannot read {self.file}, it may be damaged or cut off: {error}") from None

    def where(self, number: int) -> str:
        return f"{self.file}, line {number}"

    def stamp(self) -> list[str]:
        return self.file.stamp()
