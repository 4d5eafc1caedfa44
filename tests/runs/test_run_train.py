"""`moembed train` from recipe to run folder: stopping, resuming, and what a recipe says about sources."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from conftest import MakeModel, Run
from moembed import TrainConfig, UserError, train
from moembed.config import resolve
from moembed.embedder import Embedder
from moembed.files import locked
from moembed.folder.bases import read_base
from moembed.runs import train_sources
from moembed.runs.train import build
from moembed.runs.train_sources import TrainSource, docstring_source
from moembed.training.contrastive import gradcache
from moembed.types import Pair
from training_runs import assert_same_weights


@pytest.fixture
def recipe(make_model: MakeModel, tmp_path: Path) -> Path:
    """Two sources, prompts of their own, all that training can keep between steps."""
    make_model(prompts={"query": "query: ", "document": "document: ", "label": "label, "}).save_pretrained(
        tmp_path / "dense"
    )
    for name in ("moles", "owls"):
        rows = [
            {"query": f"where is {name} {i}?", "document": f"{name} {i} is at {i * 7 % 40}"}
            for i in range(40)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "base": str(tmp_path / "dense"),
        "out": str(tmp_path / "run"),
        "data": [
            {"path": str(tmp_path / "moles.jsonl"), "loss": "symmetric_info_nce", "query_prompt": "label"},
            str(tmp_path / "owls.jsonl"),
        ],
        "validation": str(tmp_path / "owls.jsonl"),
        "upcycle": {"num_experts": 4},
        "loss": {"bias_rate": 0.01, "learn_temperature": True},
        "steps": 6,
        "batch_size": 8,
        "save_every": 2,
        "evaluate_every": 3,
        "precision": "float32",
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


def metrics(tmp_path: Path) -> list[dict[str, Any]]:
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    times = ("elapsed", "pairs_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]


def test_sigterm_saves_says_how_to_go_on_and_is_no_error(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moembed.runs.train.write_report", lambda run, title: run)
    assert run("train", recipe, "--json")[0] == 0
    whole = metrics(tmp_path)
    backward, calls = gradcache.backward, iter(range(1, 99))

    def terminated(*arguments: Any) -> Any:
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(gradcache, "backward", terminated)
        code, _, err = run("train", recipe, "--overwrite")
    assert code == 0, err
    command = f"moembed train {tmp_path / 'run' / 'recipe.yaml'} --resume"
    assert f"resume with: {command}" in err
    assert len(metrics(tmp_path)) == 3
    code, out, err = run(*command.split()[1:], "--json")
    assert code == 0, err
    assert (json.loads(out)["steps"], metrics(tmp_path)) == (6, whole)


def test_a_resume_with_another_recipe_shows_the_difference(
    run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moembed.runs.train.write_report", lambda run, title: run)
    assert run("train", recipe, "steps=2")[0] == 0
    code, _, err = run("train", recipe, "steps=2", "optim.learning_rate=1", "--resume")
    assert code == 2
    assert "-optim.learning_rate: 2e-05\n+optim.learning_rate: 1.0" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "changes",
    [
        {"pooling": "mean"},
        {"pooling": {"name": "tokens", "dim": 8}, "loss.learn_temperature": False},
        {"loss.weight": [{"kind": "focal"}, {"kind": "hardness", "alpha": 2}]},
        {
            "schedules": {"negatives": {0: 0, 1: 2}, "loss.weight.alpha": {0: 0, 1: 1}},
            "loss.weight": {"kind": "margin"},
        },
    ],
    ids=lambda changes: " ".join(changes),
)
def test_a_run_goes_on_from_the_recipe_that_it_wrote(
    changes: dict[str, Any], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which gives every key, those of other kinds too."""
    monkeypatch.setattr("moembed.runs.train.write_report", lambda run, title: run)
    train(recipe, steps=1, **changes)
    assert train(tmp_path / "run" / "recipe.yaml", resume=True).steps == 1


def test_the_model_has_what_the_recipe_asked_for(run: Run, recipe: Path, tmp_path: Path) -> None:
    dims = 'loss.matryoshka={"dims": [16, 8]}'
    code, _, err = run("train", recipe, dims, "held_out=0.2")
    assert code == 0, err
    model = Embedder.from_pretrained(tmp_path / "run", device="cpu")
    assert model.dims == (16, 8)
    router = model.encoder.spec.moe
    assert router is not None
    assert router.router.selection_bias
    assert "| Trained to be cut to | 16, 8 |" in (tmp_path / "run" / "model" / "README.md").read_text()
    looks = [line["held_out"] for line in metrics(tmp_path) if "held_out" in line]
    assert [sorted(look) for look in looks] == [
        ["moles", "owls", "owls (2)"]
    ] * 2  # its own part, and the validation file
    assert (tmp_path / "run" / "checkpoints" / "best" / "model.safetensors").is_file()
    report = (tmp_path / "run" / "report.html").read_text()
    for heading in ("Held-out loss", "Temperature", "Load by role", "Load by source"):
        assert f"<h3>{heading}</h3>" in report


def test_an_entry_may_stand_for_many_sources_and_small_ones_be_left_out(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moembed.runs.train.write_report", lambda run, title: run)
    (tmp_path / "few.jsonl").write_text('{"query": "a", "document": "b"}\n')
    many = {"path": f"{tmp_path}/{{}}.jsonl", "name": "of-{}", "each": ["moles", "owls", "few"]}
    code, _, err = run("train", recipe, f"data={json.dumps([many])}", "small_sources=skip", "steps=3")
    assert code == 0, err
    assert "1 sources have fewer pairs than a batch and are left out" in err
    assert {line["source"] for line in metrics(tmp_path)} <= {"of-moles", "of-owls"}
    code, _, err = run("train", recipe, f"data={json.dumps([many])}", "--overwrite")
    assert code == 2
    assert "source of-few has 1 rows, fewer than the batch size 8" in err


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ('data=[{"path": "${NOWHERE}/a.jsonl"}]', "the environment variable NOWHERE"),
        ("upcycle=null", "needs a model whose tokens choose their experts"),
        ("loss.depths={2: 1}", "must end with the last of the model's 4 layers"),
        ("loss.matryoshka.dims=[99]", "go beyond the model's 16"),
        ("held_out=0.9", "fewer than the batch size"),
    ],
)
def test_what_does_not_fit_is_one_sentence(override: str, complaint: str, run: Run, recipe: Path) -> None:
    code, _, err = run("train", recipe, override)
    assert code == 2
    assert complaint in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("batch_size=1000", "fewer than the batch size 1000"),
        ("loss.matryoshka.dims=[99]", "go beyond the model's 16"),
        ('guide={"model": "gone/a/guide"}', "gone/a/guide does not exist"),
        ("lora.targets=[router]", "this model has none that learn"),
        ("base=OUT", "which --overwrite would remove"),
    ],
)
def test_a_mistake_costs_no_earlier_run_and_leaves_no_folder(
    override: str, complaint: str, run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moembed.runs.train.write_report", lambda run, title: run)
    dense = ["upcycle=null", "loss={}", "steps=1"]
    assert run("train", recipe, *dense)[0] == 0
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    override = override.replace("OUT", str(tmp_path / "run"))
    code, _, err = run("train", recipe, *dense, override, "--overwrite")
    assert (code, complaint in err, "Traceback" in err) == (2, True, False), err
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before
    if "base" not in override:
        assert run("train", recipe, *dense, override, f"out={tmp_path / 'new'}")[0] == 2
        assert not (tmp_path / "new").exists()


def test_a_folder_without_a_name_is_one_sentence(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    for out, said in ((".", "is no name for a folder"), ("..", "already exists"), ("/", "already exists")):
        code, _, err = run("train", recipe, f"out={out}")
        assert (code, said in err, "Traceback" in err) == (2, True, False), err


def test_a_length_asked_for_is_used_and_kept_and_a_default_is_lowered(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base has 32 positions and says that it cuts texts at 20 tokens."""
    monkeypatch.setattr("moembed.runs.train.write_report", lambda run, title: run)
    (tmp_path / "dense" / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    lengths = {}
    for asked in ([], ["document_length=30"], ["document_length=10"]):
        code, _, err = run("train", recipe, "steps=1", "--overwrite", *asked)
        assert code == 0, err
        saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
        model = Embedder.from_pretrained(tmp_path / "run", device="cpu")
        limit = model.tokenizer.max_length
        lengths["".join(asked)] = saved["query_length"], saved["document_length"], limit, "from now" in err
        assert ("document_length is 20, not 256: the model cuts texts there" in err) == (not asked)
        assert f"query_length is {limit}, not 64" in err
    assert lengths == {
        "": (20, 20, 20, False),
        "document_length=30": (30, 30, 30, True),
        "document_length=10": (20, 10, 20, False),
    }
    code, _, err = run("train", recipe, "query_length=33", "--overwrite")
    assert code == 2
    assert "query_length is 33, but the model has 32 positions" in err
    assert (tmp_path / "run" / "model").is_dir()


def test_two_processes_do_not_train_into_one_folder(run: Run, recipe: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        code, _, err = run("train", recipe, "--overwrite")
    assert code == 2
    assert f"{tmp_path / 'run'} is in use by another process" in err


def test_more_experts_than_the_machine_can_hold_are_one_sentence(run: Run, recipe: Path) -> None:
    code, _, err = run("train", recipe, "upcycle.num_experts=100000000000")
    assert code == 2
    assert "this machine has" in err
    assert "Traceback" not in err


# ---- from Python ---------------------------------------------------------------------------------


def test_python_trains_as_the_command_does(run: Run, recipe: Path, tmp_path: Path) -> None:
    """From a file, a dict and a config: the same run, to the bit."""
    assert run("train", recipe, "steps=3", "optim.learning_rate=1e-3")[0] == 0
    expected = metrics(tmp_path)
    shutil.copytree(tmp_path / "run", tmp_path / "command")
    changes: dict[str, Any] = {"steps": 3, "optim.learning_rate": 1e-3}
    values = json.loads(recipe.read_text())
    for config in (recipe, values, TrainConfig.model_validate(values)):
        result = train(config, overwrite=True, **changes)
        assert metrics(tmp_path) == expected
        assert_same_weights(Path(result.model), tmp_path / "command" / "model")
        assert (result.run, result.steps, result.stopped_by_user) == (str(tmp_path / "run"), 3, False)
    assert values == json.loads(recipe.read_text())  # the caller's dict is as it was
    assert train(recipe, resume=True, **changes).steps == 3
    with pytest.raises(UserError, match="already exists"):
        train(recipe, **changes)
    with pytest.raises(UserError, match=r"did you mean 'optim\.learning_rate'"):
        train(recipe, **{"optim.learning_rat": 1.0})
    with pytest.raises(UserError, match="a config is a TrainConfig, a dict or a YAML file, not a list"):
        train([])  # type: ignore[arg-type]


def test_minutes_replace_the_end_of_the_file(recipe: Path) -> None:
    given = resolve(TrainConfig, recipe, {"steps": None, "minutes": 0.01})
    assert (given.steps, given.minutes) == (None, 0.01)
    assert train(recipe, minutes=1e-9).steps == 1


def test_the_example_of_the_docs_runs(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", docs, re.DOTALL)
    (tmp_path / "recipes").mkdir()
    recipe.rename(tmp_path / "recipes" / "finetune.yaml")
    (tmp_path / "moles.jsonl").rename(tmp_path / "pairs.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moembed.runs.train.write_report", lambda run, title: run)
    exec(example.replace("steps=200", "steps=2"), {})
    assert capsys.readouterr().out.startswith("runs/mine/model 2 ")
    assert Embedder.from_pretrained("runs/mine", device="cpu").encode(["mole"]).shape == (1, 16)


def test_layers_and_widen_change_the_base_before_it_is_trained(recipe: Path) -> None:
    changes: dict[str, Any] = {"layers": 2, "widen": {"factor": 2}, "upcycle": None, "loss": {}}
    config = resolve(TrainConfig, recipe, changes)
    spec = build(read_base(config.base), config).encoder.spec
    assert [layer.ffn.width for layer in spec.layers] == [48, 48]
    with pytest.raises(UserError, match=r"layers 9 is not within 1\.\.4"):
        build(read_base(config.base), resolve(TrainConfig, recipe, {"layers": 9}))


def test_prompts_take_a_default_along_that_is_none_of_them(
    make_model: MakeModel, recipe: Path, tmp_path: Path
) -> None:
    base = make_model()
    base.tokenizer.default_prompt = "document"
    base.save_pretrained(tmp_path / "dense")
    for prompts, default in (({"query": "q: ", "passage": "p: "}, None), ({"document": "d: "}, "document")):
        parts = read_base(str(tmp_path / "dense"))
        model = build(parts, resolve(TrainConfig, recipe, {"prompts": prompts, "upcycle": None, "loss": {}}))
        model.save_pretrained(tmp_path / "saved")
        read = Embedder.from_pretrained(tmp_path / "saved").tokenizer
        assert (read.prompts, read.default_prompt) == (prompts, default)


def test_the_built_in_pairs_mind_their_options(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [Pair(f"query {i}", f"document {i}") for i in range(9)]
    monkeypatch.setattr(train_sources, "collect", lambda: SimpleNamespace(train=pairs))
    source = docstring_source(TrainSource(path="docstrings", limit=4, name="code"))
    assert (source.name, list(source)) == ("code", pairs[:4])
    saved = TrainSource.model_validate(TrainSource(path="docstrings").model_dump())  # as resuming reads it
    assert len(docstring_source(saved)) == 9
    for options in ({"negative": "wrong"}, {"split": "test"}, {"title": "title"}):
        with pytest.raises(UserError, match=f"docstrings has neither .* {next(iter(options))} means nothing"):
            docstring_source(TrainSource.model_validate({"path": "docstrings"} | options))
