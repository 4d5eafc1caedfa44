"""Labelled files become pairs: every text with another one of its label, negatives of other labels alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Run
from moembed.data.convert import convert_file
from moembed.data.grades import label_of, labels_of, score_of
from moembed.data.sources import SourceConfig, load_source


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores(run: Run, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"sentence1": "a", "sentence2": "b", "score": 4.5, "language": "en"},
        {"sentence1": "c", "sentence2": "d", "score": "0"},
    ]
    file, out = write(tmp_path / "sts.jsonl", rows), tmp_path / "pairs.jsonl"
    code, printed, err = run("data", "convert", file, "--task", "sts", "--out", out)
    assert code == 0, err
    assert "2 pairs from 2 rows (first from sentence1, second from sentence2, score from score)" in printed
    assert read(out) == [
        {"query": "a", "document": "b", "score": 4.5, "language": "en"},
        {"query": "c", "document": "d", "score": 0.0},
    ]
    source = load_source(SourceConfig(path=str(out), score="score"))
    assert [pair.score for pair in source] == [4.5, 0.0]
    assert source.notes == ()


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=2, max_size=30), st.integers(0, 4))
def test_labels(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int]], negatives: int
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    texts: dict[int, set[str]] = {}
    for text, label in rows:
        texts.setdefault(label, set()).add(f"text {text}")
    if len(texts) < 2 or max(map(len, texts.values())) < 2:
        return
    file = write(folder / "rows.jsonl", [{"text": f"text {text}", "label": label} for text, label in rows])
    out = folder / "pairs.jsonl"
    done = convert_file(file, out, "classification", {}, negatives)
    made = read(out)
    assert done.pairs == len(made) == sum(len(some) for some in texts.values() if len(some) > 1)
    assert (done.labels, done.alone) == (len(texts), sum(len(some) == 1 for some in texts.values()))
    assert {(row["query"], row["label"]) for row in made} == {
        (text, str(label)) for label, some in texts.items() if len(some) > 1 for text in some
    }
    for row in made:
        own = texts[int(row["label"])]
        assert row["document"] in own - {row["query"]}
        wrong = list(zip(row.get("negative", []), row.get("negative_labels", []), strict=True))
        assert len(wrong) <= negatives
        for text, label in wrong:
            assert label != row["label"]
            assert text in texts[int(label)] - {row["query"], row["document"]}
    again = convert_file(file, folder / "again.jsonl", "clustering", {}, negatives)
    assert (again.pairs, read(folder / "again.jsonl")) == (done.pairs, made)  # the seed decides
    source = load_source(SourceConfig(path=str(out), label="label"))
    assert [pair.label for pair in source] == [row["label"] for row in made]
    assert [list(pair.negative_labels) for pair in source] == [row.get("negative_labels", []) for row in made]


def test_a_row_may_hold_lists(tmp_path: Path) -> None:
    rows = [{"sentences": ["a", "b", "c"], "labels": [1, 1, 2]}, {"sentences": ["d"], "labels": [2]}]
    convert_file(write(tmp_path / "a.jsonl", rows), tmp_path / "b.jsonl", "clustering", {})
    pairs = {(row["query"], row["document"]) for row in read(tmp_path / "b.jsonl")}
    assert pairs == {("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")}


def test_no_text_of_the_label_is_a_negative_in_any_spelling(tmp_path: Path) -> None:
    rows = [
        {"text": t, "label": label}
        for label, t in zip("xxxyyy", ["a", "A ", "b", "c", "B", "d"], strict=True)
    ]
    done = convert_file(write(tmp_path / "r.jsonl", rows), tmp_path / "p.jsonl", "classification", {}, 3)
    assert done.repeated == 1
    made = {row["query"]: row for row in read(tmp_path / "p.jsonl")}
    assert set(made) == {"a", "b", "c", "B", "d"}
    assert made["a"]["document"] == "b"
    assert sorted(made["a"]["negative"]) == sorted(made["b"]["negative"]) == ["c", "d"]


def test_what_is_left_out_is_said_and_languages_stay(run: Run, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "a", "label": 1, "language": "en", "source": "web", "page": 3},
        {"text": "b", "label": 1, "language": "de"},
        {"text": "a", "label": 1, "language": "fr", "author": "me"},
        {"text": ["c", "d"], "label": [2, 2], "language": ["nl", "sv"], "source": "book"},
    ]
    file, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "pairs.jsonl"
    code, _, err = run("data", "convert", file, "--task", "classification", "--out", out)
    assert code == 0, err
    assert "note: 1 texts are repetitions within their label and count once" in err
    assert "note: columns not read: page, author" in err
    assert read(out) == [
        {"query": "a", "document": "b", "label": "1", "language": "en", "source": "web"},
        {"query": "b", "document": "a", "label": "1", "language": "de"},
        {"query": "c", "document": "d", "label": "2", "language": "nl", "source": "book"},
        {"query": "d", "document": "c", "label": "2", "language": "sv", "source": "book"},
    ]
    assert load_source(SourceConfig(path=str(out), label="label")).languages(range(4)) == [
        "en",
        "de",
        "nl",
        "sv",
    ]
    scored = write(tmp_path / "sts.jsonl", [{"text1": "a", "text2": "b", "score": 1, "page": 3}])
    code, _, err = run("data", "convert", scored, "--task", "sts", "--out", tmp_path / "sts-pairs.jsonl")
    assert (code, err) == (0, "note: columns not read: page\n")


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([{"x": 1}], "--task sts", "none of the columns 'x' is called sentence1"),
        ([{"text": "a", "label": 1}], "--task sts --score points", "name it with --first"),
        ([{"text": "a", "y": 1}], "--task clustering --label klass", "name another one with --label"),
        (
            [{"text": "a", "label": 1}, {"text": "b", "label": 1}],
            "--task clustering",
            "to tell apart",
        ),
        (
            [{"text": "a", "label": 1}, {"text": "b", "label": 2}],
            "--task clustering",
            "2 labels have a",
        ),
        (
            [{"text": "a", "label": 1}, {"text": "", "label": 2}],
            "--task clustering",
            "line 2: column",
        ),
        ([{"text": "a", "label": 1.5}], "--task clustering", "column 'label' is of type float"),
        ([{"texts": ["a"], "label": 1}], "--task clustering", "not as many labels"),
        (
            [{"texts": ["a"], "label": [1], "language": ["en", "de"]}],
            "--task clustering",
            "column 'language' lists 2 values for 1 texts",
        ),
        ([{"text1": "a", "text2": "b", "score": "high"}], "--task sts", "is 'high', no number"),
        ([{"text1": "a", "text2": "b", "score": 1}], "--task sts --label score", "--label means nothing for"),
    ],
)
def test_what_cannot_be_converted_is_one_sentence(
    rows: list[dict[str, Any]], options: str, said: str, run: Run, tmp_path: Path
) -> None:
    file = write(tmp_path / "rows.jsonl", rows)
    code, out, err = run("data", "convert", file, *options.split(), "--out", tmp_path / "pairs.jsonl")
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "pairs.jsonl").exists()


def test_bad_rows_are_skipped_if_asked(run: Run, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text1": "a", "text2": "b", "score": 1},
        {"text1": "a", "text2": "b", "score": "nan"},
    ]
    file = write(tmp_path / "rows.jsonl", rows)
    arguments = (
        "data",
        "convert",
        file,
        "--task",
        "sts",
        "--out",
        tmp_path / "pairs.jsonl",
        "--skip-bad-rows",
    )
    code, printed, err = run(*arguments, "--json")
    assert code == 0, err
    assert (json.loads(printed)["pairs"], json.loads(printed)["skipped"]) == (1, 1)
    assert "the first bad row: " in err
    assert run(*arguments)[0] == 2  # it exists


def test_cells() -> None:
    assert [score_of({"s": value}, "s") for value in (1, "2.5", True)] == [1.0, 2.5, 1.0]
    assert [label_of({"l": value}, "l") for value in (7, 7.0, "7")] == ["7"] * 3
    assert labels_of({"negative_labels": "['a', 'b']"}, 2) == ["a", "b"]
    assert labels_of({}, 0) == []
    with pytest.raises(ValueError, match="2 hard negatives and 1 negative_labels"):
        labels_of({"negative_labels": ["a"]}, 2)
    with pytest.raises(ValueError, match="is missing"):
        score_of({"s": None}, "s")
