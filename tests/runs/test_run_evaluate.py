"""`moembed evaluate` from Python and from the command line: one result, and no finished work is lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import TEXTS, MakeModel, Run
from moembed import EvaluationOptions, EvaluationResult, UserError, evaluate
from moembed.compare.scores import load_scores
from moembed.console import Interrupted
from moembed.evaluation.beir import RetrievalTask, save_task
from moembed.evaluation.metrics import Qrels
from moembed.families.flat import FlatMoE
from moembed.files import write_json
from moembed.runs import evaluate as run_evaluate
from moembed.runs import system

DOCS = Path(__file__).parents[2] / "docs" / "evaluating.md"


@pytest.fixture
def world(tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs and two tasks, where the docs have them; the working folder."""
    moe = FlatMoE(layers=(1,), num_experts=4)
    make_model(num_layers=2, moe=moe).save_pretrained(tmp_path / "runs" / "new" / "model")
    make_model(seed=1, num_layers=2).save_pretrained(tmp_path / "runs" / "old" / "model")
    documents = [text for text in TEXTS if text]
    queries = ["moles", "owls at night", "worms", "the meadow"]
    grades = Qrels.from_judgements(np.arange(4), np.array([0, 1, 2, 6]), np.ones(4), 4)
    ids = [str(i) for i in range(len(documents))]
    task = RetrievalTask("moles", queries, documents, grades, ids[:4], ids, [])
    save_task(task, tmp_path / "data" / "moles")
    (tmp_path / "sts-de.csv").write_text(
        "sentence1,sentence2,score\nmoles dig,a mole digs,5\nan owl,worms,1\nowls,an owl hunts,4\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def without_time(answer: dict[str, Any]) -> dict[str, Any]:
    """What two evaluations have in common."""
    for task in answer["tasks"].values():
        task.pop("seconds")
    for cost in answer["cost"].values():
        cost.pop("texts_per_second", None)
        cost.pop("peak_memory_bytes", None)
    return answer


def test_python_and_the_command_line_give_the_same(world: Path, run: Run) -> None:
    options = EvaluationOptions(dims=(8,), codecs=("float32", "int8"), dtype="float32")
    result = evaluate(["runs/new", "runs/old"], ["data/moles", "sts-de.csv"], options)
    code, out, err = run(
        "evaluate", "runs/new", "runs/old", "--tasks", "data/moles", "sts-de.csv", "--json",
        "--dims", 8, "--codecs", "float32,int8", "--dtype", "float32",
    )  # fmt: skip
    assert code == 0, err
    answer = json.loads(out)
    assert EvaluationResult.from_json(answer).to_json() == answer
    assert {name: task["kind"] for name, task in answer["tasks"].items()} == {
        "moles": "retrieval", "sts-de": "sts",
    }  # fmt: skip
    assert EvaluationResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert without_time(result.to_json()) == without_time(answer)
    assert "bm25 has no score on sts-de and no part in means over it." in err
    assert list(result.curves) == ["runs/new", "runs/old"]
    assert [(size.dim, size.codec, size.bytes) for size in result.curves["runs/old"]] == [
        (8, "float32", 32), (8, "int8", 8),
    ]  # fmt: skip


def test_a_model_in_memory_scores_as_its_folder_does(world: Path, make_model: MakeModel) -> None:
    options = EvaluationOptions(baselines=False, dtype="float32")
    folder = evaluate(["runs/old"], ["data/moles"], options)
    model = make_model(seed=1, num_layers=2)
    memory = evaluate({"runs/old": model}, ["data/moles"], options)
    assert memory.tasks["moles"].metrics == folder.tasks["moles"].metrics
    with pytest.raises(UserError, match="a model in memory is evaluated in this process"):
        evaluate({"mine": model}, ["data/moles"], EvaluationOptions(baselines=False, processes=2))
    with pytest.raises(UserError, match="there is no task to evaluate on"):
        evaluate(["runs/old"], [])


def test_the_kind_of_a_task_is_printed(world: Path, run: Run) -> None:
    code, out, err = run("evaluate", "runs/old", "--no-baselines", "--tasks", "sts-de.csv")
    assert (code, "sts-de (sts): 3 items" in out) == (0, True), err
    code, out, err = run("evaluate", "runs/old", "--no-baselines", "--tasks", "sts-de.csv", "data/moles")
    assert code == 0, err
    assert re.search(r"^moles +retrieval +nDCG@10", out, flags=re.MULTILINE)
    assert re.search(r"^sts-de +sts +Spearman", out, flags=re.MULTILINE)


def test_the_examples_of_the_docs_run(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = DOCS.read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", page[page.index("## From Python") :], flags=re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, {})
    told = capsys.readouterr().out
    assert re.search(r"^moles: \d\.\d{3} \[", told, flags=re.MULTILINE)
    assert "runs/new and runs/old" in told or "beats" in told
    assert sorted(path.name for path in (world / "scores").iterdir()) == [
        "runs-new.parquet", "runs-old.parquet",
    ]  # fmt: skip


# ---- no finished work is lost ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "place", "message"),
    [
        ("--out", "sts-de.csv/result.json", "cannot write"),
        ("--out", "data", "is a folder"),
        ("--html", "nowhere/page.html", "there is no folder"),
        ("--html", "sts-de.csv/page.html", "sts-de.csv is a file"),
        ("--html", "page.json", "does not end in .html"),
        ("--keep", "sts-de.csv", "cannot write"),
        ("--cache", "sts-de.csv", "cannot write"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    world: Path, run: Run, monkeypatch: pytest.MonkeyPatch, option: str, place: str, message: str
) -> None:
    monkeypatch.setattr(run_evaluate, "evaluate_system", None)  # would fail, were it called
    code, out, err = run("evaluate", "runs/old", "--tasks", "sts-de.csv", option, place)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def full(*arguments: object) -> None:
    raise UserError("cannot write it: the disk is full")


def test_the_table_and_the_other_files_survive_a_file_that_fails(
    world: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_the_others(path: Path, value: Any) -> None:
        write_json(path, value) if path.name != "result.json" else full()

    monkeypatch.setattr("moembed.cli.results.write_json", only_the_others)
    code, out, err = run(
        "evaluate", "runs/old", "--tasks", "data/moles", "--keep", "scores", "--html", "page.html",
        "--out", "result.json",
    )  # fmt: skip
    assert code == 2
    assert "error: cannot write it: the disk is full" in err
    assert "nDCG@10" in out
    assert json.loads((world / "page.json").read_text())["reference"] == "runs/old"
    assert "runs/old" in (world / "page.html").read_text()
    assert len(list((world / "scores").glob("*.parquet"))) == 3


def test_scores_that_cannot_be_kept_do_not_end_the_evaluation(
    world: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_evaluate, "save_scores", full)
    code, out, err = run("evaluate", "runs/old", "--tasks", "data/moles", "--keep", "scores", "--json")
    assert code == 2
    assert json.loads(out)["unkept"] == ["bm25", "static", "runs/old"]
    assert "the scores of runs/old are not kept: cannot write it: the disk is full" in err
    assert err.splitlines()[-1].startswith("error: the scores of bm25, static, runs/old could not be written")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "nothing is kept; --keep FOLDER keeps the scores of every finished system"),
        (("--keep", "scores"), "stopped: the scores of bm25, static are kept in scores"),
        (("--cache", "vectors"), "the vectors made so far are kept in vectors"),
    ],
)
def test_ctrl_c_says_what_is_kept(
    world: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(system, "routing", stopped)  # the first model is almost done
    code, out, err = run("evaluate", "runs/old", "--tasks", "data/moles", *arguments)
    assert (code, out) == (130, "")
    assert told in err
    assert err.count("\n") == 1
    if "--keep" in arguments:
        scores, about = load_scores(world / "scores" / "static.parquet")
        assert (about["system"], scores[0].task) == ("static", "moles")
    with pytest.raises(Interrupted, match="nothing is kept"):
        evaluate(["runs/old"], ["data/moles"])


@pytest.mark.parametrize("command", ["compare", "stress"])
def test_ctrl_c_in_compare_and_stress(
    world: Path, run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moembed.compare.runs.read_runs", stopped)
    monkeypatch.setattr("moembed.stress.suite.stress", stopped)
    arguments: dict[str, tuple[str, ...]] = {"compare": ("a", "b"), "stress": ("bm25", "--only", "limit")}
    code, out, err = run(command, *arguments[command])
    assert (code, out) == (130, "")
    assert re.fullmatch(r"stopped: nothing (was|is) .*\n", err)


def test_options_that_mteb_has_no_answer_to_are_refused(world: Path, run: Run) -> None:
    refused: list[tuple[tuple[object, ...], str]] = [
        (("--html", "page.html"), "--html"),
        (("--sample", 10, "--keep", "scores"), "--sample and --keep"),
        (("--codecs", "int8"), "--codecs"),
    ]
    for arguments, named in refused:
        code, _, err = run("evaluate", "runs/old", "--mteb", "STS12", *arguments)
        assert code == 2
        assert f"leave out {named}, or use --tasks" in err


def test_dims_beyond_the_model_are_refused_before_it_embeds(
    world: Path, monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., Any]
) -> None:
    monkeypatch.setattr(system, "evaluate", None)
    for dim in (0, 17):
        options = EvaluationOptions(baselines=False, dims=(8, dim))
        with pytest.raises(UserError, match=f"dim {dim} is not between 1 and the 16 coordinates of runs/old"):
            evaluate(["runs/old"], ["data/moles"], options)


def test_one_model_and_one_task_need_no_list(world: Path) -> None:
    options = EvaluationOptions(baselines=False, dtype="float32")
    assert evaluate("runs/old", "sts-de.csv", options).tasks.keys() == {"sts-de"}
    for wrong in ({"metrics": "ndcg@10"}, {"dims": 8}, {"codecs": "int8"}, {"processes": 0}, {"sample": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            EvaluationOptions(**wrong)  # type: ignore[arg-type]


def test_two_systems_never_share_a_file_of_scores(world: Path, make_model: MakeModel) -> None:
    model = make_model(num_layers=2)
    with pytest.raises(UserError, match=r"the scores of a/b and a-b would both be a-b\.parquet"):
        evaluate({"a/b": model, "a-b": model}, "data/moles", EvaluationOptions(keep="scores"))


def test_a_model_that_fails_tells_what_is_kept_of_those_before(
    world: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "routing", full)
    code, _, err = run("evaluate", "runs/old", "--tasks", "data/moles", "--keep", "scores")
    assert code == 2
    assert "the disk is full; the scores of bm25, static are kept in scores" in err


def test_mteb_takes_the_first_of_several_sizes_and_says_so(
    world: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("moembed.cli.mteb.run_mteb", lambda *_, dim, **__: asked.append(dim))
    for dims in ("64,32", "64", ""):
        code, _, err = run("evaluate", "runs/old", "--mteb", "STS12", "--dims", dims)
        assert code == 0, err
        assert ("of --dims the first, 64" in err) == ("," in dims)
    assert asked == [64, 64, None]


@pytest.mark.parametrize("name", ["bm25", "static", "base"])
def test_a_model_that_is_called_as_a_baseline_is_refused(
    world: Path, make_model: MakeModel, name: str
) -> None:
    for model in ("runs/old", make_model(num_layers=2)):
        with pytest.raises(UserError, match=f"'{name}' is what a baseline is called"):
            evaluate({"runs/new": "runs/new", name: model}, "data/moles")
    models = {"runs/new": "runs/new", "bm25": "bm25"}
    found = evaluate(models, "data/moles", EvaluationOptions(baselines=False))
    assert found.systems == ["runs/new", "bm25"]


@pytest.mark.parametrize("recipe", ["base: \xe9", "- base", "base: 3", "base: [a]", "base: {a: b}"])
def test_a_recipe_that_is_none_of_ours_tells_no_base(world: Path, recipe: str) -> None:
    (world / "runs" / "old" / "recipe.yaml").write_bytes(recipe.encode("latin-1"))
    assert evaluate("runs/old", "data/moles").systems == ["bm25", "static", "runs/old"]


def test_a_sample_reads_the_weights_that_may_be_read(world: Path) -> None:
    folder = world / "runs" / "old" / "model"
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    options = EvaluationOptions(sample=2, allow_pickle=True, dtype="float32")
    notes = evaluate("runs/old", "data/moles", options).tasks["moles"].notes
    assert "sampled: rank correlation" in " ".join(notes)
