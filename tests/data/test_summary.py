"""What `moembed data inspect, dedup, overlap` say, from the function to the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import MakeModel, Run
from moembed.data.provenance import credit, lacking
from moembed.data.sources import Source, SourceConfig
from moembed.data.summary import summarize
from moembed.report.card import _training
from moembed.runs.train_sources import TrainSource
from moembed.types import Pair, UserError

OWLS = [Pair(f"owl {i}", f"the owl {i} hunts at night", ("no owl",)) for i in range(12)]
MOLES = [Pair("Mole ", "digs"), Pair("mole", "DIGS"), Pair("mole", "eats"), Pair("worms", "digs")]


def words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def facts(sources, weights, **options):
    return summarize(sources, weights, 2, {"query": (words, 1), "document": (words, 6)}, **options)


def test_sizes_mix_lengths_and_examples_of_every_source():
    owls, moles = facts(
        [Source.from_pairs("owls", OWLS), Source.from_pairs("moles", MOLES)], [3.0, 1.0], shown=2
    )
    assert (owls["source"], owls["rows"], owls["weight"]) == ("owls", 12, 3.0)
    assert (owls["batches_per_1000"], moles["batches_per_1000"]) == (750, 250)
    assert (owls["batches_per_epoch"], moles["batches_per_epoch"]) == (6, 2)
    assert (owls["negatives"], moles["negatives"]) == (1.0, 0.0)
    expected = {"mean": 2.0, "p50": 2, "p95": 2, "max": 2, "limit": 1, "truncated": 1.0}
    assert owls["tokens"]["query"] == expected
    assert owls["tokens"]["document"]["truncated"] == 0
    assert [set(pair) for pair in owls["examples"]] == [{"query", "document", "negatives"}] * 2


def test_duplicates_are_counted_by_pair_query_and_document():
    assert facts([Source.from_pairs("moles", MOLES)], [1.0])[0]["duplicates"] == {
        "pairs": 1,
        "queries": 2,
        "documents": 2,
    }
    swapped = [Pair("a", "b"), Pair("b", "a")]
    assert facts([Source.from_pairs("ab", swapped)], [1.0])[0]["duplicates"]["pairs"] == 0


def test_a_sample_is_drawn_from_all_rows_and_the_rest_is_counted():
    told: list[int] = []
    pairs = [Pair(f"query {i}", "d" if i < 500 else "much longer") for i in range(1000)]
    fact = facts([Source.from_pairs("x", pairs)], [1.0], sample=100, progress=told.append)[0]
    assert 1.3 < fact["tokens"]["document"]["mean"] < 1.7
    assert fact["duplicates"]["documents"] == 998
    assert np.sum(told) == 1000


def test_what_the_sampler_refuses_is_refused():
    with pytest.raises(UserError, match="source moles has 4 rows"):
        summarize([Source.from_pairs("moles", MOLES)], [1.0], 5, {})


# ---- the command line ----


def write(path: Path, pairs, **labels) -> Path:
    rows = [{"query": pair.query, "document": pair.document, **labels} for pair in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(tmp_path: Path, make_model: MakeModel) -> Path:
    make_model().save_pretrained(tmp_path / "model")
    owls = write(tmp_path / "owls.jsonl", OWLS, language="en")
    moles = write(tmp_path / "moles.jsonl", MOLES)
    values = {"base": str(tmp_path / "model"), "out": str(tmp_path / "run"), "steps": 1, "batch_size": 4}
    values |= {"data": [str(owls), str(moles)], "sampling": {"exponent": 1.0}, "document_length": 5}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


def test_inspect_says_what_a_recipe_reads(run: Run, recipe: Path) -> None:
    code, out, err = run("data", "inspect", recipe, "batch_size=2", "--json")
    assert code == 0, err
    owls, moles = json.loads(out)
    assert (owls["batches_per_1000"], moles["batches_per_1000"]) == (750, 250)
    assert owls["languages"] == {"en": 12}
    assert moles["languages"] == {"": 4}
    assert owls["tokens"]["document"]["limit"] == 5
    assert owls["tokens"]["document"]["truncated"] == 1.0
    assert moles["tokens"]["query"]["truncated"] == 0
    # [CLS] query : mole [SEP], and for worms as many
    assert moles["tokens"]["query"]["max"] == 5

    code, out, err = run("data", "inspect", recipe)
    assert code == 0, err
    for text in ("750", "100.0%", "owls, languages: en 12", "hunts at night", "moles: mole -> eats"):
        assert text in out, text


def test_inspect_shows_the_sources_and_batches_of_training(run: Run, recipe: Path) -> None:
    assert run("data", "inspect", recipe, "batch_size=6")[0] == 2
    options = ("batch_size=6", "small_sources=skip", "held_out=0.25")
    code, out, err = run("data", "inspect", recipe, *options, "--json")
    assert code == 0, err
    (owls,) = json.loads(out)
    assert (owls["source"], owls["rows"], owls["batches_per_1000"], owls["batches_per_epoch"]) == (
        "owls", 12, 1000, 1
    )  # fmt: skip
    assert "note: 1 sources have fewer pairs than a batch and are left out" in err


def test_licence_and_origin_are_told_or_unknown(run: Run, recipe: Path, tmp_path: Path) -> None:
    owls = {"path": str(tmp_path / "owls.jsonl"), "license": "cc-by-4.0", "origin": "https://owls.example/x"}
    data = f"data={json.dumps([owls, str(tmp_path / 'moles.jsonl')])}"
    code, out, err = run("data", "inspect", recipe, "batch_size=2", data, "--json")
    assert code == 0, err
    told = [(fact["source"], fact["license"], fact["origin"]) for fact in json.loads(out)]
    assert told == [("owls", "cc-by-4.0", owls["origin"]), ("moles", "unknown", "unknown")]
    assert "the licence of moles is unknown" in err
    named = credit(SourceConfig.model_validate(owls))
    assert named.endswith("owls.jsonl; license cc-by-4.0; from https://owls.example/x")
    assert credit(SourceConfig(path="a/b.jsonl")) == "a/b.jsonl"
    card = _training(None, [named, "x/a/b.jsonl"])
    assert "- Data: owls.jsonl; license cc-by-4.0; from https://owls.example/x, b.jsonl" in card


def test_sources_of_one_name_each_have_a_licence() -> None:
    known, unknown = TrainSource(path="a/pairs.jsonl", license="MIT"), TrainSource(path="b/pairs.jsonl")
    assert len(lacking([("pairs", unknown), ("pairs", known)])) == 1
    assert lacking([("pairs", known)]) == []


def test_dedup_writes_a_clean_file(run: Run, recipe: Path, tmp_path: Path) -> None:
    arguments = ("data", "dedup", tmp_path / "moles.jsonl", "--out", tmp_path / "clean.jsonl")
    code, out, err = run(*arguments, "--by", "query", "--near", 0.8, "--json")
    assert code == 0, err
    expected = {"rows": 4, "kept": 2, "exact": 2, "near": 0, "out": str(tmp_path / "clean.jsonl")}
    assert json.loads(out) == expected
    assert len((tmp_path / "clean.jsonl").read_text().splitlines()) == 2
    code, _, err = run(*arguments)
    assert code == 2
    assert "already exists" in err
    code, out, _ = run(*arguments, "--overwrite")
    assert code == 0
    assert "3 of 4 rows; 1 exact and 0 near duplicates left out" in out


def write_task(task: Path, query: str) -> Path:
    (task / "qrels").mkdir(parents=True)
    (task / "corpus.jsonl").write_text(json.dumps({"_id": "d", "text": "at night"}) + "\n")
    (task / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": query}) + "\n")
    (task / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    return task


def test_no_task_hides_another_of_its_name(run: Run, recipe: Path, tmp_path: Path) -> None:
    first, second = (write_task(tmp_path / place / "night", place) for place in ("a", "b"))
    collect = ("data", "collect", "--source", "mo", "--root", tmp_path, "--out", tmp_path / "out.jsonl")
    for command in (("data", "overlap", recipe), collect):
        code, _, err = run(*command, "--tasks", first, second)
        assert (code, err) == (
            2, "error: two tasks have the same name, which counts go by: rename one of them\n"
        )  # fmt: skip
    assert run("data", "overlap", recipe, "--tasks", first, first)[0] == 0


@pytest.mark.parametrize(
    ("name", "rows", "counted"),
    [
        (
            "sts.jsonl",
            [{"sentence1": "the owl 3 hunts at night", "sentence2": f"{n} owls", "score": n} for n in (2, 5)],
            3,
        ),
        (
            "bitext.csv",
            [
                {"sentence1": "eine Eule", "sentence2": "The owl 3 hunts at night"},
                {"sentence1": "ein Wal", "sentence2": "a whale"},
            ],
            4,
        ),
        (
            "classes.parquet",
            [{"text": "the owl 3 hunts at night", "label": "owl", "split": "test"}]
            + [{"text": f"the owl {i} hunts at night", "label": "owl", "split": "train"} for i in (4, 5)]
            + [{"text": f"the mole {i} digs", "label": "mole", "split": "train"} for i in (4, 5)],
            1,
        ),
        ("rerank.jsonl", [{"query": "who", "positive": ["the owl 3 hunts at night"], "negative": ["no"]}], 1),
    ],
)
def test_overlap_knows_every_kind_of_task(
    name: str, rows: list[dict[str, Any]], counted: int, run: Run, recipe: Path, tmp_path: Path
) -> None:
    file = tmp_path / name
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".csv":
        file.write_text("\n".join(",".join(line) for line in (rows[0], *map(dict.values, rows))))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = run("data", "overlap", recipe, "--tasks", file, "--json")
    assert code == 0, err
    found = {(row["source"], row["role"]): row for row in json.loads(out)}
    owls = found["owls", "document"]
    assert (owls["task"], owls["equal"], owls["seen"], owls["task_texts"]) == (file.stem, 1, 1, counted)
    assert found["moles", "document"]["equal"] == 0


def test_overlap_finds_what_an_evaluation_shares(run: Run, recipe: Path, tmp_path: Path) -> None:
    task = tmp_path / "night"
    (task / "qrels").mkdir(parents=True)
    documents = ["The owl 3 hunts at night", "the owl 4 hunts at night"]
    rows = [{"_id": str(i), "text": text} for i, text in enumerate(documents)]
    (task / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (task / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "who hunts"}) + "\n")
    (task / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t0\t1\nq\t1\t0\n")
    code, out, err = run("data", "overlap", recipe, "--tasks", task, "--json")
    assert code == 0, err
    found = {(row["source"], row["role"]): row for row in json.loads(out)}
    assert set(found) == {(name, role) for name in ("owls", "moles") for role in ("query", "document")}
    owls = found["owls", "document"]
    assert (owls["equal"], owls["seen"], owls["task_texts"], owls["rows"]) == (1, 1, 1, 12)
    code, out, _ = run("data", "overlap", recipe, "--tasks", task)
    assert code == 0
    assert "owls and night: the owl 3 hunts at night | The owl 3 hunts at night" in out
    code, out, _ = run("data", "overlap", recipe, f"data={tmp_path / 'moles.jsonl'}", "--tasks", task)
    assert "no training text equals or contains" in out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("inspect", "none.yaml"), "no such recipe"),
        (("dedup", "none.jsonl", "--out", "out.jsonl"), "no such file or folder"),
        (("dedup", "none.jsonl", "--out", "out.jsonl", "--near", "1"), "is not between 0 and 1"),
        (("dedup", "none.jsonl", "--out", "out.jsonl", "--near", "3"), "must be at most 1"),
    ],
)
def test_mistakes_are_one_sentence(run: Run, tmp_path: Path, monkeypatch, arguments, problem) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("data", *arguments)
    assert (code, out) == (2, "")
    assert problem in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
