"""Translated manual pages: paragraphs of a page beside those of its translation.

The pages of ``usr/share/man/LANGUAGE/manN`` are held beside those of ``usr/share/man/manN`` with the same
name. A section counts if both pages have the same headings of the same levels in the same order and it has as
many paragraphs in both: translations that are behind the page are so left out. What is read is the macro
package man(7), which Pod::Man, DocBook and po4a write as well; pages in mdoc(7) are counted and skipped.
"""

from __future__ import annotations

import gzip
import re
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from moembed.data.collect.pair import CollectedPair, Place, language_of

SOURCE = "man"
_HEADINGS = (".SH", ".SS")
_BREAKS = (".PP", ".P", ".LP", ".HP", ".sp", ".RS", ".RE", ".br", ".TQ")
_VERBATIM = {".nf": ".fi", ".EX": ".EE", ".Vb": ".Ve", ".TS": ".TE"}
_FONTS = {".B": " ", ".I": " ", ".SM": " ", ".SB": " "} | {
    f".{first}{second}": "" for first in "BIR" for second in "BIR" if first != second
}
_NAMED = {
    "aq": "'", "cq": "’", "oq": "‘", "lq": "“", "rq": "”", "dq": '"', "em": "—", "en": "–", "hy": "-",
    "mi": "-", "bu": "•", "co": "©", "rg": "®", "tm": "™", "ha": "^", "ti": "~", "rs": "\\", "ga": "`",
    "->": "→", "<-": "←", ">=": "≥", "<=": "≤", "mu": "×", "+-": "±", "sl": "/", "ba": "|", "or": "|",
    "ss": "ß", "/o": "ø", "/O": "Ø", "ae": "æ", "AE": "Æ", "oa": "å", "oA": "Å", "Po": "£", "Eu": "€",
    "de": "°", "Fo": "«", "Fc": "»", "r!": "¡", "r?": "¿", "bq": "‚", "Bq": "„", "12": "½", "sc": "§",
}  # fmt: skip
# \(:o is o with a diaeresis: the first letter names a combining mark
_ACCENTS = {
    "'": "\u0301",
    "`": "\u0300",
    "^": "\u0302",
    ":": "\u0308",
    "~": "\u0303",
    ",": "\u0327",
    "v": "\u030c",
}
UNKNOWN_CHARACTER = "\ufffd"
_STRINGS = {"--": "—", 'L"': "“", 'R"': "”", "PI": "π", "C+": "C++", "Aq": "'"}
_ESCAPE = re.compile(
    r"""\\(?:
        \[u(?P<code>[0-9A-Fa-f]{4,6})\]
      | (?:\((?P<two>..)|\[(?P<name>[^\]]*)\])
      | \*(?:\((?P<string>..)|\[[^\]]*\]|.)
      | [fF](?:\(..|\[[^\]]*\]|.)
      | s(?:\[[^\]]*\]|'[^']*'|[-+]?\d)
      | [nmM](?:\(..|\[[^\]]*\]|.)
      | [hvlLwXZ]'[^']*'
      | (?P<one>.)
    )""",
    re.VERBOSE,
)
_ONE = {"-": "-", "e": "\\", "\\": "\\", " ": " ", "~": " ", "0": " ", "'": "'", "`": "`", ".": ".", "t": " "}


@dataclass
class Section:
    """A heading of level ``.SH`` or ``.SS`` with what is below it."""

    level: str
    paragraphs: list[str] = field(default_factory=list)


def collect(place: Place) -> Iterator[CollectedPair]:
    """English paragraph -> its translation."""
    for path in place.below("usr/share/man/*/man*/*", "usr/local/share/man/*/man*/*"):
        man = path.parent.parent.parent
        language = language_of(path.parent.parent.name)
        name = path.name.removesuffix(".gz")
        originals = [man / path.parent.name / one for one in (name, f"{name}.gz")]
        original = next((one for one in originals if one.is_file()), None)
        if language is None or language == "en" or original is None:
            continue
        pages = [_page(original, place), _page(path, place)]
        if not (pages[0] and pages[1]):
            continue
        english, translated = pages
        if [one.level for one in english] != [one.level for one in translated]:
            place.skipped["manual pages with other headings"] += 1
            continue
        package, licence = place.licences.of_file(path)
        for before, after in zip(english, translated, strict=True):
            if len(before.paragraphs) != len(after.paragraphs):
                place.skipped["sections with other paragraphs"] += 1
                continue
            for query, document in zip(before.paragraphs, after.paragraphs, strict=True):
                if UNKNOWN_CHARACTER in query + document:
                    place.skipped["characters without a known name"] += 1
                else:
                    yield CollectedPair(query, document, language, "en", SOURCE, package, licence)


def _page(path: Path, place: Place) -> list[Section]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except UnicodeDecodeError:
        place.skipped["manual pages not in UTF-8"] += 1
        return []
    except (OSError, EOFError):
        place.skipped["unreadable manual pages"] += 1
        return []
    if re.search(r"^\.Dd\b", text, re.MULTILINE):
        place.skipped["manual pages in mdoc"] += 1
        return []
    return sections(text)


def sections(text: str) -> list[Section]:
    """The sections of a page in man(7), without tables, examples and what stands before the first heading."""
    page = _Page()
    until = ""  # the line that ends what is passed over
    depth = 0  # of conditional blocks
    for line in text.splitlines():
        if until:
            until = "" if line.strip() == until or line.startswith(until + " ") else until
        elif depth or re.match(r"['.]\s*(?:if|ie|el)\b", line):
            depth += line.count(r"\{") - line.count(r"\}")
        elif re.match(r"\.\s*(?:de|am|ig)\b", line):
            until = ".."
        elif line.startswith(('.\\"', "'\\\"", "'")):
            continue
        elif line.startswith("."):
            until = page.request(line)
        elif line.strip():
            page.add(plain(line))
        else:
            page.end()
    page.end()
    return page.sections


@dataclass
class _Page:
    sections: list[Section] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    heading: bool = False  # the next line of text is the heading that .SH left open
    tag: bool = False  # the next line of text is the tag of .TP

    def request(self, line: str) -> str:
        """Take in a line that starts with a dot; what ends the part that must not be read, or nothing."""
        name, *given = _arguments(line)
        if name in _HEADINGS:
            self.end()
            self.sections.append(Section(name))
            self.heading = not given
        elif name in _VERBATIM:
            self.end()
            return _VERBATIM[name]
        elif name in (".TP", ".IP"):
            self.end()
            self.tag = name == ".TP"
            if name == ".IP" and given and given[0].strip():
                self.add(given[0])
                self.end()
        elif name in _BREAKS:
            self.end()
        elif name in _FONTS:
            self.add(_FONTS[name].join(given))
        return ""

    def add(self, text: str) -> None:
        if self.heading:
            self.heading = False
        else:
            self.words.append(text)
            if self.tag:
                self.end()

    def end(self) -> None:
        """The paragraph is over."""
        paragraph = " ".join(" ".join(self.words).split())
        if paragraph and self.sections:
            self.sections[-1].paragraphs.append(paragraph)
        self.words, self.tag = [], False


def _arguments(line: str) -> list[str]:
    """The name of a request and its arguments; quotes hold blanks together, as in roff."""
    name, _, rest = line.replace(". ", ".", 1).partition(" ")
    lexer = shlex.shlex(rest.replace("\\ ", "\\~"), posix=True)
    lexer.whitespace_split, lexer.commenters, lexer.quotes, lexer.escape = True, "", '"', ""
    try:
        return [name.strip(), *map(plain, lexer)]
    except ValueError:  # a quote that is not closed, which roff closes at the end of the line
        return [name.strip(), *map(plain, rest.replace('"', " ").split())]


def plain(line: str) -> str:
    r"""The text of a line without the escapes of roff.

    >>> plain(r"\fB\-\-help\fR shows \(lqthis\(rq")
    '--help shows “this”'
    """

    def shown(match: re.Match[str]) -> str:
        if match["code"]:
            return chr(int(match["code"], 16))
        if named := match["two"] or match["name"]:
            return _named(named)
        if match["string"]:
            return _STRINGS.get(match["string"], "")
        return _ONE.get(match["one"] or "", "")

    return _ESCAPE.sub(shown, re.sub(r'\\["#].*', "", line))


def _named(name: str) -> str:
    """The character of ``\\(name``, or the mark of one that is not known."""
    if name in _NAMED:
        return _NAMED[name]
    if len(name) == 2 and name[0] in _ACCENTS and name[1].isalpha():
        return unicodedata.normalize("NFC", name[1] + _ACCENTS[name[0]])
    return UNKNOWN_CHARACTER
