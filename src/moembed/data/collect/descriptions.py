"""Descriptions of Debian packages: what one is in a line, and at length; and their translations.

Read from ``var/lib/dpkg/status`` and, where apt has fetched them, from the ``Packages`` and
``Translation-XX`` files of ``var/lib/apt/lists``. The texts of one package in several languages have their
``Description-md5`` in common. Descriptions lie in the folder ``debian`` of a source package, so their licence
is that of ``debian/*``; who translated them is told in no file on the machine: their licence is ``unknown``.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from moembed.data.collect.licences import UNKNOWN, stanzas
from moembed.data.collect.pair import CollectedPair, Place, language_of

SOURCE = "package-descriptions"
_COMPRESSION = {".gz": "gzip", ".lz4": "lz4", ".zst": "zstd", ".bz2": "bz2"}
_TRANSLATION = re.compile(r".*_Translation-([A-Za-z_@-]+)(?:\.\w+)?")


def collect(place: Place) -> Iterator[CollectedPair]:
    """Line -> text in each language, and the English line -> the text in another language."""
    english: dict[str, str] = {}  # Description-md5 -> the line
    lists = "var/lib/apt/lists/*"
    for path in place.below("var/lib/dpkg/status", f"{lists}_Packages*", f"{lists}_Translation-en*"):
        for stanza in _read(path, place):
            package, line, text = stanza.get("package", ""), *_described(stanza, "en")
            if not line:
                continue
            if key := stanza.get("description-md5"):
                english[key] = line
            if text:
                licence = place.licences.of_package(package, "debian/*")
                yield CollectedPair(line, text, "en", "en", SOURCE, package, licence)
    for path in place.below(f"{lists}_Translation-*"):
        named = _TRANSLATION.fullmatch(path.name)
        language = language_of(named[1]) if named else None
        if named is None or language is None or language == "en":
            continue
        for stanza in _read(path, place):
            package, line, text = stanza.get("package", ""), *_described(stanza, named[1].lower())
            if line and text:
                yield CollectedPair(line, text, language, language, SOURCE, package, UNKNOWN)
                if original := english.get(stanza.get("description-md5", "")):
                    yield CollectedPair(original, text, language, "en", SOURCE, package, UNKNOWN)


def _described(stanza: Mapping[str, str], language: str) -> tuple[str, str]:
    """The line and the text of a stanza; empty ones where it has none."""
    names = (f"description-{language}", "description") if language == "en" else (f"description-{language}",)
    value = next((stanza[name] for name in names if name in stanza), "")
    line, _, rest = value.partition("\n")
    # a full stop of its own is an empty line; lines that are set in further are lists
    lines = ["" if part.strip() == "." else part for part in rest.split("\n")]
    paragraphs = "\n".join(lines).split("\n\n")
    return line.strip(), "\n".join(" ".join(part.split()) for part in paragraphs if part.strip())


def _read(path: Path, place: Place) -> Iterator[Mapping[str, str]]:
    try:
        if path.suffix == ".xz":
            data = lzma.decompress(path.read_bytes())
        else:
            with pa.input_stream(str(path), compression=_COMPRESSION.get(path.suffix)) as file:
                data = file.read()
    except (OSError, lzma.LZMAError, pa.ArrowException):
        place.skipped["unreadable lists of packages"] += 1
        return
    yield from stanzas(data.decode("utf-8", errors="replace").splitlines())
