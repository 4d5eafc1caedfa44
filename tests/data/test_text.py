"""Texts stream with their languages from every layout, and what is wrong with a row is said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moembed.data.text import Text, TextConfig, read_texts
from moembed.types import UserError


def jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(*configs: TextConfig) -> list[Text]:
    return [text for block in read_texts(configs) for text in block]


def test_rows_keep_their_order_and_languages(tmp_path: Path) -> None:
    rows = [{"text": "mole", "language": "en"}, {"text": "Maulwurf", "language": "de"}, {"text": "owl"}]
    table = pa.table({"text": ["chouette"], "language": ["fr"], "source": ["x"]})
    pq.write_table(table, tmp_path / "b.parquet")
    found = read(
        TextConfig(path=jsonl(tmp_path / "a.jsonl", rows)), TextConfig(path=str(tmp_path / "b.parquet"))
    )
    assert found == [("en", "mole"), ("de", "Maulwurf"), ("a", "owl"), ("fr", "chouette")]


def test_lines_of_text_files_are_texts_of_the_language_their_file_is_named_after(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("a mole\n\n  an owl \n", encoding="utf-8")
    with gzip.open(tmp_path / "de.txt.gz", "wt", encoding="utf-8") as file:
        file.write("ein Maulwurf")
    assert read(TextConfig(path=f"{tmp_path}/*.txt")) == [("en", "a mole"), ("en", "an owl")]
    assert read(TextConfig(path=f"{tmp_path}/de.txt.gz")) == [("de", "ein Maulwurf")]
    named = TextConfig(path=f"{tmp_path}/en.txt", default_language="und", limit=1)
    assert read(named) == [("und", "a mole")]


def test_other_columns_and_chosen_languages(tmp_path: Path) -> None:
    rows = [{"body": "mole", "lang": "en"}, {"body": "owl", "lang": "en"}, {"body": "Eule", "lang": "de"}]
    config = TextConfig(path=jsonl(tmp_path / "a.jsonl", rows), text="body", language="lang", only=("de",))
    assert read(config) == [("de", "Eule")]


def test_blocks_bound_what_is_held(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": f"mole {i}"} for i in range(5000)])
    blocks = list(read_texts([TextConfig(path=path)]))
    assert len(blocks) == 3
    assert [text.text for block in blocks for text in block] == [f"mole {i}" for i in range(5000)]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"text": ""}, "line 2: column 'text' is empty; correct it, or set bad_rows=skip"),
        ({"text": None}, "line 2: column 'text' is missing"),
        ({"text": 3}, "line 2: column 'text' is of type int, not a string"),
        ({"text": "owl", "language": 3}, "line 2: the language is not a string"),
        ([1], "line 2: not a JSON object"),
    ],
)
def test_bad_rows_are_refused_or_skipped(row: Any, complaint: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "mole"}, row, {"text": "worm"}])
    with pytest.raises(UserError, match=complaint):
        read(TextConfig(path=path))
    assert [text.text for text in read(TextConfig(path=path, bad_rows="skip"))] == ["mole", "worm"]


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"mole\n\xff\xfe owl\n")
    with pytest.raises(UserError, match=r"a.txt, line 2: column 'text' is not UTF-8"):
        read(TextConfig(path=str(tmp_path / "a.txt")))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"path": "nowhere.txt"}, "no such file or folder"),
        ({"text": "body"}, "there is no column 'body', only 'text'"),
        ({"only": ("fr",)}, "holds no texts in fr"),
    ],
)
def test_a_source_without_texts_is_refused(
    changes: dict[str, Any], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "a.jsonl", [{"text": "mole"}])
    with pytest.raises(UserError, match=complaint):
        read(TextConfig.model_validate({"path": "a.jsonl"} | changes))


def test_a_file_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "en.txt.gz"
    path.write_bytes(gzip.compress(b"a mole\n" * 9999)[:-20])
    with pytest.raises(UserError, match=r"cannot read .*en.txt.gz, it may be damaged or cut off"):
        read(TextConfig(path=str(path)))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path, packed = tmp_path / "en.txt.gz", bytearray(gzip.compress(b"a mole\n" * 9999))
    packed[30:50] = bytes(20)
    path.write_bytes(packed)
    with pytest.raises(UserError, match=r"cannot read .*en.txt.gz, it may be damaged or cut off"):
        read(TextConfig(path=str(path)))


def test_skipped_rows_are_counted_and_told(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "mole"}, {"text": ""}, {"text": "owl"}, [1]])
    notes: list[str] = []
    list(read_texts([TextConfig(path=path, bad_rows="skip")], notes.append))
    assert notes == [f"{path}: 2 bad rows were skipped, the first: {path}, line 2: column 'text' is empty"]


def test_columns_that_are_not_used_are_told(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "mole", "title": "Moles", "lang": "en"}])
    notes: list[str] = []
    list(read_texts([TextConfig(path=path)], notes.append))
    assert notes == [f"{path}: columns not used: title, lang"]
    notes.clear()
    list(
        read_texts(
            [TextConfig(path=path, language="lang"), TextConfig(path=path, language="l")], notes.append
        )
    )
    assert notes[0] == f"{path}: columns not used: title"
    assert notes[2] == f"{path}: no row has the column l that language names"
