"""Pairs from small made machines: catalogues, manual pages, help, descriptions, licences."""

from __future__ import annotations

import gzip
import json
import lzma
import struct
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from moembed.data.collect import manuals
from moembed.data.collect.catalogues import clean, placeholders, shortcut_of
from moembed.data.collect.licences import Licences, stanzas
from moembed.data.collect.pair import language_of
from moembed.data.collect.run import collect_pairs
from moembed.data.overlap import TaskTexts
from moembed.types import UserError

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Source: moles

Files: *
Copyright: the moles
License: GPL-3+
 A long text.

Files: debian/* po/*
License: MIT
"""
ENGLISH_PAGE = r"""'\" t
.\" a comment
.de Sp
.sp
..
.TH MOLE 1
.SH NAME
mole \- digs tunnels below the garden
.SH DESCRIPTION
.if n \{\
.ad l
\}
A \fBmole\fR digs its tunnels
by night.
.PP
Owls hunt the moles of the garden.
.TP
.B \-\-deep
Dig the tunnels below the roots.
.nf
verbatim
.fi
.SH EXAMPLES
Only one paragraph stands here.
"""
GERMAN_PAGE = r"""
.TH MOLE 1
.SH NAME
mole \- gr\(:abt G\[u00E4]nge unter dem Garten
.SH BESCHREIBUNG
Ein \fBMaulwurf\fR gräbt nachts.
.PP
Eulen jagen die Maulwürfe.
.TP
.B \-\-deep
Die Gänge \(lqunter\(rq den Wurzeln graben.
.SH BEISPIELE
Hier stehen zwei.
.PP
Das ist der zweite.
"""
PAGE = """<html><head><title>x</title></head><body><p>Frame without an id</p>
<h1 id="hd_1">{0}</h1><p id="par_1">{1} <span hidden="true">Mac<br></span><b>{2}</b></p>
<script>nothing()</script><p id="par_{3}">{4}</p><h2 id="hd_2">{5}</h2></body></html>"""


def catalogue(messages: dict[str, str]) -> bytes:
    """A .mo file as msgfmt writes it; NUL parts plural forms."""
    messages = {
        "": "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=n!=1;\n"
    } | messages
    keys = sorted(messages)
    ids, texts = [key.encode() for key in keys], [messages[key].encode() for key in keys]
    start = 28 + 16 * len(keys)
    data, tables = b"", b""
    for strings in (ids, texts):
        for text in strings:
            tables += struct.pack("<II", len(text), start + len(data))
            data += text + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(keys), 28, 28 + 8 * len(keys), 0, 0)
    return head + tables + data


def put(root: Path, name: str, content: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def collected(root: Path, *sources: str, **options: Any) -> tuple[list[dict[str, str]], Any]:
    out = root / "pairs.jsonl"
    done = collect_pairs(sources, out, root, **options)
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()], done


def texts(rows: list[dict[str, str]]) -> set[tuple[str, str, str]]:
    return {(row["language"], row["query"], row["document"]) for row in rows}


def test_catalogues_give_messages_with_language_package_and_licence(tmp_path: Path) -> None:
    messages = {
        "_Open the tunnel": "Den Gang ö_ffnen",
        "menu\x04Close the tunnel": "Den Gang schließen",
        "%d mole in %s was seen\0%d moles in %s were seen": "In %2$s wurde %1$d Maulwurf gesehen\0viele",
        "Delete the file %s": "Die Datei löschen",  # forgets the file
        "Not translated yet": "",
        "Kept as it is here": "Kept as it is here",
        "short": "kurz",
    }
    folder = "usr/share/locale/de/LC_MESSAGES"
    put(tmp_path, f"{folder}/moles.mo", catalogue(messages))
    put(tmp_path, f"{folder}/again.mo", catalogue({"Open the tunnel": "den gang  öffnen"}))
    put(tmp_path, "usr/share/locale/en_GB/LC_MESSAGES/moles.mo", catalogue({"A color of moles": "A colour"}))
    put(tmp_path, "usr/share/locale/pt_BR/LC_MESSAGES/broken.mo", b"no catalogue")
    put(tmp_path, "var/lib/dpkg/info/libmoles:amd64.list", f"/usr\n/{folder}/moles.mo\n")
    put(tmp_path, "usr/share/doc/libmoles/copyright", COPYRIGHT)
    rows, done = collected(tmp_path, "mo")
    assert texts(rows) == {
        ("de", "Open the tunnel", "den gang öffnen"),  # again.mo is read first: the repeated one is left out
        ("de", "Close the tunnel", "Den Gang schließen"),
        ("de", "… mole in … was seen", "In … wurde … Maulwurf gesehen"),
    }
    owned = {row["query"]: (row["package"], row["licence"]) for row in rows}
    assert owned["Close the tunnel"] == ("libmoles", "GPL-3+")
    assert owned["Open the tunnel"] == ("", "unknown")
    assert {row["query_language"] for row in rows} == {"en"}
    assert done.counts["mo"] == {"de": 3}
    assert done.skipped["mo"] == {
        "placeholders that differ": 1,
        "not translated": 2,
        "too short": 1,
        "repeated": 1,
        "unreadable catalogues": 1,
    }


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("%(name)s has {0!r:>4} of %-5.2lf%%", "… has … of …%%"),
        ("Save _As", "Save As"),
        ("snake_case and R&D stay", "snake_case and R&D stay"),
        ("5 < 6", "5 < 6"),
    ],
)
def test_messages_are_shown_as_a_reader_sees_them(message: str, shown: str) -> None:
    assert clean(message, shortcut_of(message)) == shown


def test_the_shortcut_of_a_translation_may_stand_anywhere() -> None:
    assert clean("Ö_ffnen", "_") == "Öffnen"
    assert clean("開く(_O)", "_") == "開く"


def test_placeholders_may_change_their_order_and_nothing_else() -> None:
    assert placeholders("%s of %d") == placeholders("%2$d, %1$s")
    assert placeholders("%s") != placeholders("%d")


def test_manual_pages_are_aligned_by_section_and_paragraph(tmp_path: Path) -> None:
    put(tmp_path, "usr/share/man/man1/mole.1.gz", gzip.compress(ENGLISH_PAGE.encode()))
    put(tmp_path, "usr/share/man/de/man1/mole.1.gz", gzip.compress(GERMAN_PAGE.encode()))
    put(tmp_path, "usr/share/man/fr/man1/mole.1", ".SH NOM\nune taupe sans description\n")
    put(tmp_path, "usr/share/man/ja/man1/mole.1", ".SH NAME\nあ\n".encode("euc-jp"))
    put(tmp_path, "usr/share/man/it/man1/mole.1", ".Dd today\n.Sh NOME\n")
    rows, done = collected(tmp_path, "man")
    assert texts(rows) == {
        ("de", "mole - digs tunnels below the garden", "mole - gräbt Gänge unter dem Garten"),
        ("de", "A mole digs its tunnels by night.", "Ein Maulwurf gräbt nachts."),
        ("de", "Owls hunt the moles of the garden.", "Eulen jagen die Maulwürfe."),
        ("de", "Dig the tunnels below the roots.", "Die Gänge “unter” den Wurzeln graben."),
    }
    assert done.skipped["man"] == {
        "sections with other paragraphs": 1,
        "manual pages with other headings": 1,
        "manual pages not in UTF-8": 1,
        "manual pages in mdoc": 1,
        "too short": 1,  # --deep
    }


def test_a_character_that_is_not_known_leaves_its_paragraph_out(tmp_path: Path) -> None:
    put(tmp_path, "usr/share/man/man1/a.1", ".SH NAME\nthe moles of the garden\n.PP\nthe owls of the wood\n")
    put(tmp_path, "usr/share/man/de/man1/a.1", ".SH NAME\ndie \\(zz Maulw\n.PP\ndie Eulen\n")
    rows, done = collected(tmp_path, "man")
    assert texts(rows) == {("de", "the owls of the wood", "die Eulen")}
    assert done.skipped["man"] == {"characters without a known name": 1}


def test_fonts_and_arguments_of_man() -> None:
    page = manuals.sections('.SH "TWO WORDS"\n.BR mole (1)\n.B "a b" c\n.IP "\\fBtag\\fR" 4\ntext\n')
    assert page[0].paragraphs == ["mole(1) a b c", "tag", "text"]


def test_help_gives_translations_by_id_and_headings_with_their_text(tmp_path: Path) -> None:
    help_folder = "usr/share/libreoffice/help"
    english = PAGE.format("Counting all words", "Count the", "words", "2", "Click the bar.", "Nothing below")
    german = PAGE.format("Wörter zählen hier", "Alle die", "Wörter", "3", "Auf die Leiste.", "Nichts")
    put(tmp_path, f"{help_folder}/en-US/text/swriter/a.html", english)
    put(tmp_path, f"{help_folder}/de/text/swriter/a.html", german)
    rows, _ = collected(tmp_path, "libreoffice-help")
    assert texts(rows) == {
        ("en", "Counting all words", "Count the words\nClick the bar."),
        ("de", "Wörter zählen hier", "Alle die Wörter\nAuf die Leiste."),
        ("de", "Counting all words", "Wörter zählen hier"),
        ("de", "Count the words", "Alle die Wörter"),
        ("de", "Nothing below", "Nichts"),
    }


def test_descriptions_and_their_translations(tmp_path: Path) -> None:
    status = "Package: moles\nDescription: digs many tunnels\n It digs\n them deep.\n .\n And at night.\n\n"
    packages = "Package: owls\nDescription: hunts many moles\nDescription-md5: 12\n\n"
    german = "Package: owls\nDescription-md5: 12\nDescription-de: jagt viele Maulwürfe\n Sie jagt.\n"
    put(tmp_path, "var/lib/dpkg/status", status)
    put(tmp_path, "var/lib/apt/lists/d_Packages.xz", lzma.compress(packages.encode()))
    put(tmp_path, "var/lib/apt/lists/d_i18n_Translation-de.gz", gzip.compress(german.encode()))
    put(tmp_path, "usr/share/doc/moles/copyright", COPYRIGHT)
    rows, _ = collected(tmp_path, "package-descriptions")
    assert texts(rows) == {
        ("en", "digs many tunnels", "It digs them deep.\nAnd at night."),
        ("de", "jagt viele Maulwürfe", "Sie jagt."),
        ("de", "hunts many moles", "Sie jagt."),
    }
    assert {row["package"]: row["licence"] for row in rows} == {"moles": "MIT", "owls": "unknown"}


def test_docstrings_of_a_folder(tmp_path: Path) -> None:
    code = """def dig(depth):
    'Dig a tunnel of some depth.'
    if depth:
        dig(depth - 1)
    return depth
"""
    put(tmp_path, "moles/digging.py", code)
    about = "Metadata-Version: 2.1\nName: the-moles\nVersion: 1\n"
    about += "Classifier: License :: OSI Approved :: MIT License\n"
    put(tmp_path, "the_moles-1.dist-info/METADATA", about)
    put(tmp_path, "the_moles-1.dist-info/RECORD", "moles/digging.py,,\n")
    rows, _ = collected(tmp_path, "docstrings")
    assert [(row["query"], row["package"], row["licence"]) for row in rows] == [
        ("Dig a tunnel of some depth.", "the-moles", "MIT License")
    ]


def test_pairs_of_an_evaluation_task_are_left_out(tmp_path: Path) -> None:
    messages = {"Where do moles dig?": "Wo graben sie?", "Where do owls sleep?": "Wo schlafen sie?"}
    put(tmp_path, "usr/share/locale/de/LC_MESSAGES/moles.mo", catalogue(messages))
    rows, done = collected(tmp_path, "mo", tasks=TaskTexts({"moles": ["wo GRABEN sie?"]}))
    assert [row["query"] for row in rows] == ["Where do owls sleep?"]
    assert done.skipped["mo"] == {"in an evaluation task": 1}


def test_licences_in_prose_are_unknown(tmp_path: Path) -> None:
    put(tmp_path, "usr/share/doc/prose/copyright", "This is GPL, more or less.\n")
    licences = Licences(tmp_path)
    assert licences.of_package("prose") == licences.of_package("missing") == "unknown"


def test_stanzas_of_a_control_file() -> None:
    lines = ["# a comment", "A: 1", "B: 2", " more", "", "", "A: 3"]
    assert list(stanzas(lines)) == [{"a": "1", "b": "2\nmore"}, {"a": "3"}]


@pytest.mark.parametrize("locale", ["C", "l10n.moles", "templates"])
def test_no_language(locale: str) -> None:
    assert language_of(locale) is None


def test_the_command_counts_and_refuses(run: Run, tmp_path: Path) -> None:
    put(
        tmp_path, "usr/share/locale/de/LC_MESSAGES/m.mo", catalogue({"Where do moles dig?": "Wo graben sie?"})
    )
    command = ["data", "collect", "--root", str(tmp_path), "--out", str(tmp_path / "out.jsonl")]
    code, out, err = run(*command, "--source", "mo", "--json")
    assert code == 0
    assert json.loads(out)["counts"] == {"mo": {"de": 1}}
    assert "1 pairs have the licence unknown" in err
    assert "not compared with evaluation tasks" in err
    assert run(*command, "--source", "mo")[0] == 2  # the file is there
    assert run(*command, "--source", "moles", "--overwrite")[0] == 2
    with pytest.raises(UserError, match="no pairs of man below"):
        collect_pairs(["man"], tmp_path / "other.jsonl", tmp_path)
    assert not (tmp_path / "other.jsonl").exists()
