"""The documents that texts are written for: each once, with its id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from moembed.data.columns import ColumnUse
from moembed.data.layouts import corpus_shards
from moembed.data.pairs import PairsFile, document_of_row
from moembed.data.text_key import text_key
from moembed.types import UserError


class DocumentsFile(PairsFile):
    """Rows with a text, as `moembed mine --corpus` reads them."""

    columns_hint: ClassVar[str] = "name the column with --text-column"


@dataclass(frozen=True, slots=True)
class Document:
    """``id``: of the row, or else of its text."""

    id: str
    text: str
    language: str | None = None


@dataclass(slots=True)
class Documents:
    """The distinct documents of a source, the first ``limit`` of them, in their order.

    ``repeated`` and ``skipped`` count rows left out, ``left`` says whether there are more than ``limit``.

    Raises:
        UserError: as `moembed.data.layouts.shards`; a row without a text, unless ``source.bad_rows`` skips
            it.
    """

    source: DocumentsFile
    limit: int | None = None
    use: ColumnUse = field(default_factory=ColumnUse)
    count: int = 0
    repeated: int = 0
    skipped: int = 0
    left: bool = False

    def __iter__(self) -> Iterator[Document]:
        self.count = self.repeated = self.skipped = 0
        seen: set[bytes] = set()
        for shard in corpus_shards(self.source.path, self.source.split, self.source.subset):
            for number, row in shard.rows():
                if isinstance(row, dict):
                    self.use.see(row)
                found = row if isinstance(row, str) else document_of_row(row, self.source, self.use, False)
                if isinstance(found, str):
                    if self.source.bad_rows == "refuse":
                        raise UserError(f"{shard.where(number)}: {found}; {self.source.advice(found)}")
                    self.skipped += 1
                    continue
                assert isinstance(row, dict)
                text = found[0].document
                key = text_key(text)
                if key in seen:
                    self.repeated += 1
                    continue
                if self.count == self.limit:
                    self.left = True
                    return
                seen.add(key)
                self.count += 1
                given = next((row[name] for name in ("id", "_id") if row.get(name) not in (None, "")), None)
                language = row.get(self.source.language or "")
                yield Document(
                    str(key.hex() if given is None else given), text,
                    language if isinstance(language, str) and language else None,
                )  # fmt: skip
        if not self.count:
            raise UserError(f"{self.source.path} holds no usable rows")

    def notes(self) -> list[str]:
        return self.use.notes(self.source.remarks(self.use.unused))
