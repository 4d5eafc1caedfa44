"""What a recipe reads and names, before anything is run: its stages, its lists, what it may not remove."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from conftest import MakeModel, Run
from moembed import TrainConfig, UserError, train
from moembed.runs.distill import DistillConfig
from moembed.runs.inputs import require_new_run
from moembed.runs.pretrain import PretrainConfig
from moembed.runs.train_reranker import RerankerConfig
from training_runs import PAIRS


@pytest.fixture
def values(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("moembed.runs.train.write_report", lambda run, title: run)
    make_model().save_pretrained(tmp_path / "base")
    rows = [{"query": p.query, "document": p.document, "text": p.query} for p in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {"base": tmp_path / "base", "out": tmp_path / "run", "data": tmp_path / "pairs.jsonl"}
    settings = {"steps": 1, "batch_size": 8, "precision": "float32"}
    return {key: str(path) for key, path in paths.items()} | settings


def test_null_takes_the_stages_out_of_a_recipe(run: Run, values: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    staged = values | {"loss.temperature": 0.5, "tolerance": 0.1, "stages": [{"name": "first"}, {"steps": 9}]}
    recipe.write_text(yaml.safe_dump(staged))
    code, out, err = run("train", recipe, "stages=null", "--json")
    assert code == 0, err
    assert f"the stages of {recipe} are left out: this is one run of the keys above them" in err
    assert json.loads(out)["steps"] == 1
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["loss"]["temperature"] == 0.5
    assert train(str(recipe), stages=None, out=str(tmp_path / "second")).steps == 1
    recipe.write_text(yaml.safe_dump(values | {"stages": None}))
    code, _, err = run("train", recipe, "stages=null", "--overwrite")
    assert (code, "left out" in err) == (0, False), err
    assert run("train", recipe, "--dry-run", "--overwrite")[0] == 0


def test_null_empties_lists_that_need_not_be_there(values: dict[str, Any]) -> None:
    config = TrainConfig.model_validate(values | {"validation": None, "schedules": None})
    assert (config.validation, config.schedules) == ((), {})
    with pytest.raises(ValueError, match="data"):
        TrainConfig.model_validate(values | {"data": None})


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (TrainConfig, {"data": "IN/pairs.jsonl"}),
        (TrainConfig, {"validation": "IN/*.jsonl"}),
        (TrainConfig, {"guide": {"model": "IN/model"}}),
        (TrainConfig, {"guide": {"model": "gone", "cache": "IN/cache"}}),
        (TrainConfig, {"distill": {"teachers": ["gone", "st:IN/model"]}}),
        (TrainConfig, {"distill": {"teachers": ["gone"], "cache": "IN/cache"}}),
        (TrainConfig, {"item_pairs": {"vectors": "IN/rows.npy", "items": "pairs.jsonl"}}),
        (TrainConfig, {"item_pairs": {"vectors": "rows.npy", "items": "IN/pairs.jsonl"}}),
        (TrainConfig, {"item_pairs": {"teacher": "IN/model"}}),
        (TrainConfig, {"item_pairs": {"teacher": "gone", "cache": "IN/cache"}}),
        (TrainConfig, {"evaluate": {"tasks": ["IN/cache"], "every_steps": 1}}),
        (PretrainConfig, {"base": "IN/model"}),
        (PretrainConfig, {"data": "IN/pairs.jsonl"}),
        (DistillConfig, {"teacher": "IN/model"}),
        (DistillConfig, {"teacher": "gone", "cache": "IN/cache"}),
        (RerankerConfig, {"task": "reranking", "base": "IN/model"}),
    ],
)
def test_a_run_removes_nothing_that_it_reads(
    kind: type[Any], changes: dict[str, Any], values: dict[str, Any], tmp_path: Path
) -> None:
    inside = tmp_path / "run"
    for folder in ("model", "cache"):
        (inside / folder).mkdir(parents=True)
    for file in ("recipe.yaml", "pairs.jsonl", "rows.npy"):
        (inside / file).write_text("")
    values = {key: value for key, value in values.items() if key in kind.model_fields}
    told = json.loads(json.dumps(values | changes).replace("IN/", f"{inside}/"))
    config = kind.model_validate(told)
    message = (
        f"^the run reads (st:)?{inside}/.*, which --overwrite would remove with {inside}: choose another"
    )
    with pytest.raises(UserError, match=message):
        require_new_run(inside, config, overwrite=True)
    with pytest.raises(UserError, match="already exists: choose another folder, or replace it"):
        require_new_run(inside, config, overwrite=False)


@pytest.mark.parametrize("command", ["train", "pretrain", "distill"])
def test_what_it_reads_is_told_before_anything_else(
    command: str, run: Run, make_model: MakeModel, values: dict[str, Any], tmp_path: Path
) -> None:
    inside, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    make_model().save_pretrained(inside / "model")
    (inside / "recipe.yaml").write_text("")
    np.save(inside / "rows.npy", np.eye(len(PAIRS), 4, dtype=np.float32))
    values |= {"item_pairs": {"vectors": str(inside / "rows.npy"), "items": values["data"]}}
    if command == "pretrain":
        values = {"base": str(inside / "model"), "out": values["out"], "data": values["data"], "steps": 1}
    recipe.write_text(yaml.safe_dump(values))
    asked = ["train", recipe] if command == "train" else ["pretrain", recipe]
    if command == "distill":
        asked = ["distill", "--texts", values["data"], "--teacher", inside / "model", "--out", inside]
    code, _, err = run(*asked, "--overwrite")
    assert (code, "which --overwrite would remove" in err, "Traceback" in err) == (2, True, False), err
    assert (inside / "model" / "config.json").exists()
    assert (inside / "rows.npy").exists()
