"""The grids of recipes/experiments: all can be run, and the split that asks about known paragraphs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from moembed.embedder import Embedder
from moembed.evaluation.beir import load_task
from moembed.experiment.settings import read_plan

FOLDER = Path(__file__).parents[2] / "recipes" / "experiments"
GRIDS = [file for file in sorted(FOLDER.glob("*.yaml")) if "cells" in yaml.safe_load(file.read_text())]


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_a_grid_is_a_plan_of_recipes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEMBED_DATA", "data")
    plan = read_plan(file, [], 2)
    variants = plan.config.variants  # where a rate is tuned, every cell at each rate
    assert len(plan.jobs) == 2 * len(variants)
    assert variants[plan.jobs[0].cell].cell == plan.config.control
    recipes = {job.recipe for job in plan.jobs if job.seed == 0}
    assert len(recipes) == len(variants), "two cells are the same recipe"
    assert plan.config.question
    assert f"moembed experiment recipes/experiments/{file.name}" in file.read_text()


def test_clusters_shares_the_runs_of_the_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEMBED_DATA", "data")
    jobs = [
        {(job.cell, job.seed): (job.recipe, job.evaluation) for job in read_plan(FOLDER / name, [], 3).jobs}
        for name in ("ladder.yaml", "clusters.yaml")
    ]
    for cell in ("dense", "wide", "cluster"):
        for seed in range(3):
            assert jobs[0][cell, seed] == jobs[1][cell, seed]


def test_known_paragraphs_are_asked_something_new(tmp_path: Path) -> None:
    asked = {f"paragraph {i}": [f"question {i}.{j}" for j in range(2 + i % 4)] for i in range(20)}
    pairs = [(query, document) for document, queries in asked.items() for query in [*queries, queries[0]]]
    table = pa.table(
        {"title": ["x"] * len(pairs), "query": [q for q, _ in pairs], "document": [d for _, d in pairs]}
    )
    pq.write_table(table, tmp_path / "pairs.parquet")
    script = [
        sys.executable,
        str(FOLDER / "corpus.py"),
        str(tmp_path / "pairs.parquet"),
        str(tmp_path / "out"),
    ]
    subprocess.run([*script, "8", "3"], check=True)
    task = load_task(tmp_path / "out/task")
    train = pq.read_table(tmp_path / "out/train.parquet").to_pylist()
    assert {pair["document"] for pair in train} == set(task.documents)
    assert len(task.documents) == 8
    assert len(train) == 24
    assert not {pair["query"] for pair in train} & set(task.queries)
    for query, document in zip(task.queries, task.documents, strict=True):
        assert query in asked[document]
    refused = subprocess.run([*script, "11", "3"], capture_output=True, text=True, check=False)
    assert refused.returncode
    assert "10 paragraphs with more than 3 questions, not 11" in refused.stderr


@pytest.mark.filterwarnings("ignore:.*mean pooling is assumed")
def test_a_fresh_encoder_is_one_draw_in_the_words_of_its_base(tmp_path: Path) -> None:
    for name in ("one", "again"):
        script = [sys.executable, str(FOLDER / "fresh.py"), "minilm", str(tmp_path / name), "32", "2", "48"]
        subprocess.run(script, check=True)
    model, again = (Embedder.from_pretrained(tmp_path / name, device="cpu") for name in ("one", "again"))
    assert len(model.encoder.layers) == 2
    assert model.encode(["owls hunt voles"]).shape == (1, 32)
    np.testing.assert_array_equal(model.encode(["owls hunt voles"]), again.encode(["owls hunt voles"]))
    known = Embedder.from_pretrained("minilm", device="cpu").tokenizer
    assert list(model.tokenizer.whole_rows(["owls hunt voles"])) == list(
        known.whole_rows(["owls hunt voles"])
    )
