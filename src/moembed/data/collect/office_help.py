"""LibreOffice's help as installed: paragraphs with equal ids in two languages, and headings with their text.

Pages lie in ``help/LANGUAGE/text/**/*.html``; a paragraph has the same id in every language.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from moembed.data.collect.pair import CollectedPair, Place, language_of

SOURCE = "libreoffice-help"
ENGLISH = "en-US"
_FOLDERS = ("usr/share/libreoffice/help", "usr/lib/libreoffice/help", "opt/libreoffice*/help")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_NEVER_CLOSED = ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr")


@dataclass
class Block:
    """A heading or a paragraph of a page."""

    id: str
    heading: bool
    text: str


def collect(place: Place) -> Iterator[CollectedPair]:
    """Headings -> the text below them in each language, and English -> translation by paragraph."""
    for folder in place.below(*_FOLDERS):
        for translated in sorted(path for path in folder.iterdir() if (path / "text").is_dir()):
            language = language_of(translated.name)
            if language is None or (language == "en" and translated.name != ENGLISH):
                continue
            for path in sorted((translated / "text").rglob("*.html")):
                package, licence = place.licences.of_file(path)
                facts = (SOURCE, package, licence)
                page = _page(path, place)
                for heading, text in sections(page):
                    yield CollectedPair(heading, text, language, language, *facts)
                original = folder / ENGLISH / path.relative_to(translated)
                if language != "en" and original.is_file():
                    english = {block.id: block.text for block in _page(original, place) if block.id}
                    for block in page:
                        if block.id in english:
                            yield CollectedPair(english[block.id], block.text, language, "en", *facts)


def sections(page: list[Block]) -> Iterator[tuple[str, str]]:
    """Every heading with the paragraphs up to the next one; headings with nothing below them are left out."""
    heading, texts = "", list[str]()
    for block in [*page, Block("", True, "")]:
        if block.heading:
            if heading and texts:
                yield heading, "\n".join(texts)
            heading, texts = block.text, []
        else:
            texts.append(block.text)


def _page(path: Path, place: Place) -> list[Block]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        place.skipped["unreadable pages"] += 1
        return []
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return [block for block in reader.blocks if block.text]


@dataclass
class _Reader(HTMLParser):
    """Blocks of a page, without scripts and what is hidden, which is text for another system."""

    blocks: list[Block] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: Block | None = None
        self._tag = ""
        self._hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if self._hidden or tag in ("script", "style") or "hidden" in given:
            if tag not in _NEVER_CLOSED:
                self._hidden.append(tag)
        elif tag == "p" or tag in _HEADINGS:
            self._end()
            self._open, self._tag = Block(given.get("id") or "", tag != "p", ""), tag

    def handle_endtag(self, tag: str) -> None:
        if self._hidden:
            if tag in self._hidden:
                while self._hidden.pop() != tag:
                    pass
        elif tag == self._tag:
            self._end()

    def handle_data(self, data: str) -> None:
        if self._open and not self._hidden:
            self._open.text += data

    def close(self) -> None:
        super().close()
        self._end()

    def _end(self) -> None:
        # headings of the debug notes and paragraphs of the frame have no id, and are no help
        if self._open and self._open.id:
            self._open.text = " ".join(self._open.text.split())
            self.blocks.append(self._open)
        self._open, self._tag = None, ""
