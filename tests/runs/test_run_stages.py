"""Recipes of several stages: each is the run it would be by itself, and no place to stop loses more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import MakeModel, Run
from moembed import Reranker, UserError, train, train_stages
from moembed.config import read_values
from moembed.embedder import Embedder
from moembed.runs import train_stages as stages_module
from moembed.runs.stage_inputs import require_outside
from moembed.runs.stage_plans import dry_run_stages
from moembed.runs.stages import Stage, plan_stages
from moembed.runs.train_stages import StageResult, last_scored, score_changes
from training_runs import PAIRS, assert_same_weights, interrupt_at, save_animals


@pytest.fixture
def values(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """NV-Embed's two stages: in-batch negatives on, then off."""
    for module in ("train", "train_reranker", "distill"):
        monkeypatch.setattr(f"moembed.runs.{module}.write_report", lambda run, title: run)
    make_model(num_layers=2, dropout=0.1).save_pretrained(tmp_path / "base")
    rows = [{"query": p.query, "document": p.document, "negative": PAIRS[i - 1].document} for i, p in
            enumerate(PAIRS)]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "base": str(tmp_path / "base"), "out": str(tmp_path / "run"), "data": str(tmp_path / "pairs.jsonl"),
        "steps": 2, "batch_size": 8, "save_every": 1, "precision": "float32", "layers": 1,
        "prompts": {"query": "query: ", "document": ""},
        "stages": [{"name": "first"}, {"name": "second", "loss.in_batch": False, "steps": 3}],
    }  # fmt: skip


def texts(tmp_path: Path) -> str:
    rows = [{"text": f"{pair.query} {pair.document}"} for pair in PAIRS]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "texts.jsonl")


def test_two_stages_are_two_runs_one_after_the_other(values: dict[str, Any], tmp_path: Path) -> None:
    done = train_stages(values)
    assert [result.steps for result in done.stages] == [2, 3]
    alone = {key: value for key, value in values.items() if key != "stages"}
    first = train(alone, out=str(tmp_path / "one"))
    alone = {key: value for key, value in alone.items() if key != "layers"}
    second = train(alone, base=first.model, out=str(tmp_path / "two"), steps=3, **{"loss.in_batch": False})
    assert_same_weights(tmp_path / "run" / "first" / "model", Path(first.model))
    assert_same_weights(tmp_path / "run" / "second" / "model", Path(second.model))
    assert_same_weights(Path(done.model), Path(second.model))
    assert Embedder.from_pretrained(tmp_path / "run", device="cpu").encoder.spec.num_layers == 1


@pytest.mark.parametrize("step", [1, 3, 5], ids="at step {}".format)
def test_a_run_goes_on_in_the_stage_that_was_cut(
    step: int, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first checkpoint, at the start of the second stage, in its midst."""
    train_stages(values)
    with monkeypatch.context() as patch:
        interrupt_at(step, patch, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_stages(values, out=str(tmp_path / "cut"))
    began: list[tuple[str, bool]] = []

    def begin(config: Any, resume: bool) -> Any:
        began.append((Path(config.out).name, resume))
        return train(config, resume=resume)

    monkeypatch.setitem(stages_module._RUNNERS, "contrastive", begin)
    train_stages(tmp_path / "cut" / "recipe.yaml", resume=True)
    expected = {1: [("first", False), ("second", False)], 3: [("second", False)], 5: [("second", True)]}
    assert began == expected[step]
    assert_same_weights(tmp_path / "run" / "model", tmp_path / "cut" / "model")
    train_stages(tmp_path / "cut" / "recipe.yaml", resume=True)  # finished: nothing is done again
    assert began == expected[step]


def test_a_finished_stage_is_bound_to_its_recipe(run: Run, values: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    code, out, err = run("train", recipe, "--json")
    assert code == 0, err
    assert [stage["stage"] for stage in json.loads(out)["stages"]] == ["first", "second"]
    assert "stage 2 of 2, second: contrastive" in err
    code, _, err = run("train", recipe, "stages.first.steps=1", "--resume")
    assert (code, "stage first" in err, "with another recipe" in err) == (2, True, True)
    code, _, err = run("train", recipe, "seed=1", "--resume")
    assert (code, "stage first" in err, "with another recipe" in err) == (2, True, True)
    code, _, err = run("train", recipe)
    assert (code, "already exists" in err) == (2, True)


def test_all_tasks_in_one_recipe(run: Run, values: dict[str, Any], tmp_path: Path) -> None:
    """Pretraining, contrastive training, a student, a reranker and a merge; and the plan of it before."""
    some = texts(tmp_path)
    values = values | {"keep_checkpoints": 1}
    del values["layers"]
    values["stages"] = [
        {
            "name": "masked", "task": "pretraining", "data": some, "objective": "retromae",
            "sequence_length": 16, "packed": False,
        },
        {"name": "pairs"},
        {
            "name": "scores", "loss.in_batch": False,
            "distill": {"teachers": [str(tmp_path / "base")], "candidates": "own"},
        },
        {"name": "ranker", "task": "reranking", "from": "pairs"},
        {
            "name": "student", "task": "distillation", "from": "scores", "data": some,
            "teacher": str(tmp_path / "base"),
        },
        {"name": "whole", "task": "merge", "models": ["pairs", "scores"], "weights": [0.25, 0.75]},
    ]  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    code, out, err = run("train", recipe, "--dry-run", "--json")
    assert code == 0, err
    plans = json.loads(out)["stages"]
    tasks = ["pretraining", "contrastive", "contrastive", "reranking", "distillation", "merge"]
    assert [plan["task"] for plan in plans] == tasks
    assert plans[1]["settings"]["base"] == str(tmp_path / "run" / "masked" / "model")
    assert (
        "candidates of a query: its document and all its hard negatives (in_batch is false)"
        in (plans[2]["loss"])
    )
    assert not (tmp_path / "run").exists()

    code, out, err = run("train", recipe, "--json")
    assert code == 0, err
    assert [stage["task"] for stage in json.loads(out)["stages"]] == tasks
    Reranker.from_pretrained(tmp_path / "run" / "ranker", device="cpu")
    parts = [
        Embedder.from_pretrained(tmp_path / "run" / name, device="cpu").encoder.state_dict()
        for name in ("pairs", "scores", "whole", "")
    ]
    for name, tensor in parts[2].items():
        expected = 0.25 * parts[0][name] + 0.75 * parts[1][name]
        assert (tensor - expected).abs().max() < 1e-6, name
        assert tensor.equal(parts[3][name]), name


# ---- what a stage is told ------------------------------------------------------------------------


def told(stage: Stage) -> dict[str, Any]:
    return stage.config.model_dump(exclude_unset=True)


def test_keys_above_the_stages_and_overrides(values: dict[str, Any], tmp_path: Path) -> None:
    masked = {"name": "masked", "task": "pretraining", "data": texts(tmp_path)}
    values = values | {"stages": [masked, *values["stages"]], "minutes": None}
    plan = plan_stages(values, {"batch_size": 4, "stages.second.minutes": 2, "loss.temperature": 0.5})
    first, second, third = (told(stage) for stage in plan.stages)
    assert {"layers", "prompts", "loss"}.isdisjoint(first)
    assert (first["base"], second["layers"]) == (str(tmp_path / "base"), 1)
    assert second["base"] == str(tmp_path / "run" / "masked" / "model")
    assert ("layers" in third, "steps" in third, third["minutes"]) == (False, False, 2)
    assert [some["batch_size"] for some in (first, second, third)] == [4, 4, 4]
    assert third["loss"]["in_batch"] is False
    assert third["loss"]["temperature"] == 0.5
    again = plan_stages(read_values(yaml.safe_load(plan.dump())))
    assert again.recipes() == plan.recipes()
    assert [stage.config for stage in again.stages] == [stage.config for stage in plan.stages]
    moved = plan_stages(values, {"layers": 2, "out": "elsewhere"})
    assert (told(moved.stages[1])["layers"], moved.stages[2].folder) == (2, Path("elsewhere/second"))


def test_dotted_keys_above_the_stages_are_sections(values: dict[str, Any]) -> None:
    dotted = plan_stages({"loss.temperature": 0.5, "loss": {"z": 0.1}, "optim.weight_decay": 0} | values)
    nested = plan_stages(values | {"loss": {"z": 0.1, "temperature": 0.5}, "optim": {"weight_decay": 0}})
    assert [stage.config for stage in dotted.stages] == [stage.config for stage in nested.stages]
    assert [stage.config.loss.temperature for stage in dotted.stages] == [0.5, 0.5]
    with pytest.raises(UserError, match=r"second: unknown key 'loss.tempreature', did you mean"):
        plan_stages(values | {"loss.tempreature": 0.5, "stages": [{"name": "second"}]})


def test_the_table_of_words_is_compressed_once(values: dict[str, Any]) -> None:
    plan = plan_stages(values | {"vocabulary": {"method": "int8"}})
    assert ["vocabulary" in told(stage) for stage in plan.stages] == [True, False]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["stages"].append({"name": "first"}), "two stages are called first"),
        (lambda v: v["stages"].append({"name": "a/b"}), "its name is that of a folder"),
        (lambda v: v["stages"].append({"task": "distilation"}), "did you mean distillation?"),
        (lambda v: v["stages"].append({"stpes": 1}), "stage stage-3: .*stpes"),
        (lambda v: v["stages"].append({"from": "third"}), "which is no stage before it: first, second"),
        (lambda v: v["stages"].append({"from": "first", "base": "minilm"}), "leave out from, or base"),
        (lambda v: v["stages"].append({"out": "x"}), "out is for all stages"),
        (lambda v: v["stages"][0].update({"from": "second"}), "no stage is before this one"),
        (lambda v: v.update(stages=[]), "stages"),
        (lambda v: v.update(stesp=1), "stesp is a key above the stages.*did you mean steps"),
        (lambda v: v["stages"].append({"task": "merge", "models": ["first"]}), "stage stage-3: models"),
        (
            lambda v: v["stages"].insert(0, {"name": "m", "task": "merge", "models": ["first", "second"]}),
            "stage m: it merges first, which is no stage before it: none",
        ),
        (
            lambda v: v["stages"].append({"name": "m", "task": "merge", "models": ["m", "second"]}),
            "stage m: it merges m, which is no stage before it: first, second",
        ),
        (
            lambda v: v["stages"].extend(
                [{"name": "r", "task": "reranking"}, {"name": "after"}]
            ),
            "which is a reranker: name an embedder with from",
        ),
    ],
)  # fmt: skip
def test_wrong_stages(change: Callable[[dict[str, Any]], Any], words: str, values: dict[str, Any]) -> None:
    change(values)
    with pytest.raises(UserError, match=words):
        plan_stages(values)


def test_what_is_refused_elsewhere(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="here, as in a cell of an experiment, a recipe has one stage"):
        train(values)
    with pytest.raises(UserError, match=r"write stages\.NAME\.key=value, and for NAME one of first, second"):
        plan_stages(values, {"stages.third.steps": 1})
    values["stages"].append({"data": str(tmp_path / "gone.jsonl")})
    with pytest.raises(UserError, match=r"stage stage-3: no such file or folder: .*gone.jsonl"):
        train_stages(values)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"evaluate": {"tasks": ["gone"], "every_steps": 1}}, "gone does not exist"),
        ({"item_pairs": {"vectors": "gone.npy", "items": "gone.jsonl"}}, "gone.npy does not exist"),
        ({"base": "gone/away/model"}, "gone/away/model does not exist"),
        ({"guide": {"model": "gone/a/guide"}}, "gone/a/guide does not exist"),
        ({"distill": {"teachers": ["gone/a/teacher"]}}, "gone/a/teacher does not exist"),
        ({"item_pairs": {"teacher": "gone/other/items"}}, "gone/other/items does not exist"),
        (
            {"task": "distillation", "data": "PAIRS", "teacher": "gone/old/teacher"},
            "gone/old/teacher does not exist",
        ),
        ({"task": "merge", "models": ["first", "frist/x/y"]}, "frist/x/y does not exist"),
    ],
)
def test_what_a_later_stage_needs_is_looked_for_before_the_first(
    stage: dict[str, Any], words: str, values: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("stages: []\n")
    stage = stage | ({"data": str(tmp_path / "pairs.jsonl")} if "data" in stage else {})
    values["stages"].append(stage)
    with pytest.raises(UserError, match=f"stage stage-3: {words}"):
        train_stages(values, overwrite=True)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


def test_a_run_does_not_remove_what_it_reads(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "base").rename(tmp_path / "run")  # a model folder, which --overwrite may replace
    plan = plan_stages(values, {"base": str(tmp_path / "run")})
    for start in (train_stages, dry_run_stages):
        with pytest.raises(UserError, match=r"stage first: it reads .*run, which --overwrite would remove"):
            start(plan, overwrite=True)
    assert (tmp_path / "run" / "config.json").exists()
    guided = plan_stages(values, {"guide": {"model": str(tmp_path / "run")}, "base": "minilm"})
    with pytest.raises(UserError, match=r"stage first: it reads .*run, which --overwrite would remove"):
        require_outside(guided)
    listed = plan_stages(values, {"data": str(tmp_path / "run" / "*.jsonl"), "base": "minilm"})
    with pytest.raises(UserError, match=r"stage first: it reads .*jsonl, which --overwrite would remove"):
        require_outside(listed)


def test_only_a_run_of_stages_goes_on_as_one(run: Run, values: dict[str, Any], tmp_path: Path) -> None:
    alone = {key: value for key, value in values.items() if key != "stages"}
    train(alone)
    (tmp_path / "run" / "first").mkdir()
    (tmp_path / "run" / "first" / "notes.txt").write_text("mine")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    code, _, err = run("train", recipe, "--resume")
    assert (code, "is no run of several stages, so there is nothing to resume" in err) == (2, True)
    assert (tmp_path / "run" / "first" / "notes.txt").exists()
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before


def test_what_may_change_in_a_run_may_change_in_a_stage(values: dict[str, Any]) -> None:
    train_stages(values)
    again = train_stages(values, resume=True, workers=0, save_every=2, keep_checkpoints=1)
    assert [result.steps for result in again.stages] == [2, 3]


# ---- scores from stage to stage ------------------------------------------------------------------


def test_a_stage_that_lowers_the_score_is_told(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = {"tasks": [save_animals(tmp_path / "animals")], "every_steps": 9}
    done = train_stages(values, evaluate=tasks, tolerance=1)
    assert "within the tolerance of 1" in capsys.readouterr().err
    first, second = done.stages
    assert first.texts == second.texts

    def changes(before: float, now: float, tolerance: float | None, texts: str = "a") -> list[str]:
        one = StageResult("one", "contrastive", "", "", 1, 1.0, "ndcg@10", before, "a")
        other = StageResult("two", "contrastive", "", "", 1, 1.0, "ndcg@10", now, texts)
        merged = StageResult("three", "merge", "", "", 0, 0.0)
        return score_changes([one, other, merged], tolerance)

    front = "ndcg@10 of stage two 0.4000, of stage one 0.5000: "
    assert changes(0.5, 0.4, None) == [f"{front}-0.1000"]
    assert changes(0.5, 0.4, 0.2) == [f"{front}-0.1000, within the tolerance of 0.2"]
    assert changes(0.5, 0.4, 0.05) == [f"warning: {front}-0.1000, which the tolerance of 0.05 does not allow"]
    assert "do not compare" in changes(0.5, 0.4, 0.05, "b")[0]


def test_a_score_of_zero_is_a_score(tmp_path: Path) -> None:
    lines = [{"evaluation_mean": 0.5}, {"evaluation_mean": 0.0}, {"loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert last_scored(tmp_path) == {"evaluation_mean": 0.0}
