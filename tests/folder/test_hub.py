"""Models from the hub and onto it, against a hub in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from conftest import Run
from fake_hub import FakeHub
from moembed.cli import main
from moembed.embedder import Embedder
from moembed.folder import hub as room
from moembed.folder.bases import base_name
from moembed.folder.read import read_config
from moembed.runs.quantize import QuantizePlan, quantize_model
from moembed.types import UserError
from moembed.weights.projection import add_projection

REPO = "me/moles"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub of our own, an empty cache, nobody logged in, online."""
    made = FakeHub()
    template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield made
    made.stop()


def saved(model: Embedder, folder: Path) -> dict[str, bytes]:
    model.save_pretrained(folder)
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def refusal(name: str = REPO, revision: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        room.locate(name, revision)
    assert "\n" not in str(error.value)
    assert name in str(error.value)
    return str(error.value)


# ---- from the hub -----------------------------------------------------------------------------------------


def test_what_was_loaded_once_loads_without_the_hub(
    hub: FakeHub, moe_model: Embedder, tmp_path: Path
) -> None:
    hub.add(REPO, saved(moe_model, tmp_path / "model"))
    assert Embedder.from_pretrained(REPO, device="cpu").space() == moe_model.space()
    asked = len(hub.requests)
    hub.stop()
    assert Embedder.from_pretrained(REPO, device="cpu").space() == moe_model.space()
    assert len(hub.requests) == asked


def test_offline_mode_asks_nothing(
    hub: FakeHub, moe_model: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, saved(moe_model, tmp_path / "model"))
    online = room.locate(REPO)
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert room.locate(REPO) == online
    assert "unset HF_HUB_OFFLINE" in refusal("me/voles")
    assert "unset HF_HUB_OFFLINE" in refusal(REPO, "v2")
    assert len(hub.requests) == asked


def test_a_revision_is_a_branch_or_a_commit(hub: FakeHub, make_model: Any, tmp_path: Path) -> None:
    old, new = make_model(seed=1), make_model(seed=2)
    commit = hub.add(REPO, saved(old, tmp_path / "old"))
    hub.add(REPO, saved(new, tmp_path / "new"))
    hub.add(REPO, saved(old, tmp_path / "old"), branch="release/v1")
    wanted = {None: new, "main": new, "release/v1": old, commit: old}
    for revision, model in wanted.items():
        loaded = Embedder.from_pretrained(REPO, device="cpu", revision=revision)
        assert loaded.space() == model.space(), revision
    assert "no branch, tag or commit 'v9'" in refusal(REPO, "v9")


def test_only_the_files_of_the_model_are_fetched(hub: FakeHub, moe_model: Embedder, tmp_path: Path) -> None:
    files = saved(moe_model, tmp_path / "model")
    others = [
        "README.md",
        "onnx/model.onnx",
        "onnx/config.json",
        "pytorch_model.bin",
        "model.fp16.safetensors",
    ]
    hub.add(REPO, files | dict.fromkeys(others, b"no"))
    folder = room.locate(REPO)
    assert {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()} == set(files)


def test_a_private_model_needs_the_token(
    hub: FakeHub, moe_model: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, saved(moe_model, tmp_path / "model"))
    hub.token = "hf_mole"
    assert "HF_TOKEN (HTTP 401)" in refusal()
    monkeypatch.setenv("HF_TOKEN", "hf_mole")
    assert Embedder.from_pretrained(REPO, device="cpu").space() == moe_model.space()


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "hf auth login"), (403, "ask for access"), (404, "check the name"), (500, "try again later")],
)
def test_a_refusal_says_what_to_do(hub: FakeHub, status: int, advice: str) -> None:
    hub.status = status
    message = refusal()
    assert advice in message
    assert message.endswith(f"(HTTP {status})")


def test_an_unknown_name_and_a_hub_that_is_gone(hub: FakeHub) -> None:
    assert "no model of that name" in refusal()
    hub.stop()
    assert "neither a folder nor reachable on the hub nor cached: no connection" in refusal()


@pytest.mark.parametrize("name", ["moles", "a/b/c", "./a", "~/a", "a b/c", "a/b--c", "a/.."])
def test_what_is_no_hub_id_is_a_path_that_does_not_exist(name: str, hub: FakeHub) -> None:
    assert "does not exist" in refusal(name)
    assert not hub.requests


def test_a_folder_has_no_revision(moe_model: Embedder, tmp_path: Path) -> None:
    moe_model.save_pretrained(tmp_path)
    assert "only a hub id has" in refusal(str(tmp_path), "v1")


@pytest.mark.parametrize("revision", ["v1", "release/v1"])
def test_a_hub_id_names_its_revision(
    revision: str, hub: FakeHub, make_model: Any, tmp_path: Path, run: Run
) -> None:
    old, new = make_model(seed=1, num_layers=1), make_model(seed=2, num_layers=2)
    hub.add(REPO, saved(new, tmp_path / "new"))
    hub.add(REPO, saved(old, tmp_path / "old"), branch=revision)
    name = f"{REPO}@{revision}"
    assert Embedder.from_pretrained(name, device="cpu").space() == old.space()
    assert json.loads(run("inspect", name, "--json")[1])["layers"] == 1
    assert json.loads(run("inspect", REPO, "--json")[1])["layers"] == 2
    assert "no branch, tag or commit 'v9'" in refusal(f"{REPO}@v9")
    assert "is a second one" in refusal(name, "main")


def test_an_index_remembers_the_revision_of_its_model(
    hub: FakeHub, make_model: Any, tmp_path: Path, run: Run
) -> None:
    hub.add(REPO, saved(make_model(seed=1), tmp_path / "old"), branch="v1")
    hub.add(REPO, saved(make_model(seed=2), tmp_path / "new"))
    (tmp_path / "notes.jsonl").write_text('{"text": "owls"}\n')
    arguments = ("--model", f"{REPO}@v1", "--out", tmp_path / "index", "--dtype", "float32")
    assert run("index", tmp_path / "notes.jsonl", *arguments)[0] == 0
    assert run("search", tmp_path / "index", "owls")[0] == 0
    code, _, err = run("search", tmp_path / "index", "owls", "--model", REPO)
    assert (code, "space" in err) == (2, True)


def test_a_folder_of_that_name_goes_before_the_hub(
    hub: FakeHub, moe_model: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    moe_model.save_pretrained("me/moles@v1")
    assert room.locate("me/moles@v1") == Path("me/moles@v1")
    assert base_name("me/moles@v1") == "me/moles@v1"
    (tmp_path / "me" / "empty@v1").mkdir()
    assert "not a model folder" in refusal("me/empty@v1")
    assert not hub.requests


@pytest.mark.parametrize("name", ["me/moles@", "moles@v1", "@v1", "./me/moles@v1"])
def test_what_is_no_hub_id_has_no_revision(name: str, hub: FakeHub) -> None:
    assert "does not exist" in refusal(name)
    assert not hub.requests


def test_a_recipe_trains_a_revision_of_its_base(
    hub: FakeHub, make_model: Any, tmp_path: Path, run: Run
) -> None:
    hub.add(REPO, saved(make_model(num_layers=2), tmp_path / "new"))
    hub.add(REPO, saved(make_model(num_layers=1), tmp_path / "old"), branch="v1")
    (tmp_path / "pairs.jsonl").write_text('{"query": "a", "document": "b"}\n' * 2)
    values = {"data": str(tmp_path / "pairs.jsonl"), "steps": 1, "batch_size": 2, "precision": "float32"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    for number, base in enumerate((["base=me/moles", "revision=v1"], ["base=me/moles@v1"])):
        out = tmp_path / f"run{number}"
        code, _, err = run("train", tmp_path / "recipe.yaml", *base, f"out={out}")
        assert code == 0, err
        assert read_config(out / "model").num_layers == 1
        assert "base_model: me/moles\n" in (out / "model" / "README.md").read_text()
    code, _, err = run("train", tmp_path / "recipe.yaml", "revision=v1", f"out={tmp_path / 'run2'}")
    assert (code, "minilm is part of an installed package" in err) == (2, True)


def test_a_pickle_is_fetched_only_where_allowed_and_needed(
    hub: FakeHub, make_model: Any, tmp_path: Path
) -> None:
    model = make_model()
    files = saved(model, tmp_path / "model")
    torch.save(load_file(tmp_path / "model" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    pickled = {"pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()}
    hub.add("me/both", files | pickled)
    assert not (room.locate("me/both", allow_pickle=True) / "pytorch_model.bin").exists()
    del files["model.safetensors"]
    hub.add(REPO, files | pickled)
    with pytest.raises(UserError, match=r"has no model\.safetensors; .* only with --allow-pickle"):
        Embedder.from_pretrained(REPO, device="cpu")
    first = Embedder.from_pretrained(REPO, device="cpu", allow_pickle=True)
    hub.stop()
    second = Embedder.from_pretrained(REPO, device="cpu", allow_pickle=True)
    assert first.space() == second.space() == model.space()


def test_the_pickle_of_a_dense_layer_is_fetched_beside_safetensors(
    hub: FakeHub, make_model: Any, tmp_path: Path
) -> None:
    """As many older models have it: the encoder was converted, the layer behind it was not."""
    model = Embedder(add_projection(make_model().parts(), 8))
    files = saved(model, tmp_path / "model")
    dense = tmp_path / "model" / "2_Dense" / "model.safetensors"
    torch.save(load_file(dense), tmp_path / "pytorch_model.bin")
    del files["2_Dense/model.safetensors"]
    hub.add(REPO, files | {"2_Dense/pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()})
    loaded = Embedder.from_pretrained(REPO, device="cpu", allow_pickle=True)
    assert loaded.space() == model.space()


# ---- onto the hub -----------------------------------------------------------------------------------------


def run_folder(model: Embedder, path: Path) -> Path:
    model.save_pretrained(path / "model")
    (path / "model" / "README.md").write_text("# Moles\n")
    (path / "model" / "notes.txt").write_text("mine alone")
    return path


def test_a_pushed_run_loads_from_the_hub(
    hub: FakeHub, moe_model: Embedder, tmp_path: Path, capsys: Any
) -> None:
    run = run_folder(moe_model, tmp_path / "run")
    assert main(["push", str(run), REPO, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    files = hub.files(REPO)
    assert files
    assert {name: len(files[name]) for name in shown["files"]} == shown["files"]
    assert set(files) == {".gitattributes", *shown["files"]}
    assert files["README.md"] == b"# Moles\n"
    assert "notes.txt" not in files
    assert shown["url"].startswith(f"{hub.url}/{REPO}/commit/")
    assert sum(path.endswith("/commit/main") for _, path in hub.requests) == 1
    assert Embedder.from_pretrained(REPO, device="cpu").space() == moe_model.space()


def test_a_quantized_model_is_pushed_with_its_weights(
    hub: FakeHub, moe_model: Embedder, tmp_path: Path
) -> None:
    moe_model.save_pretrained(tmp_path / "whole")
    (tmp_path / "texts.jsonl").write_text('{"text": "the mole digs"}\n{"text": "an owl hunts"}\n')
    plan = QuantizePlan(texts=tmp_path / "texts.jsonl")
    quantize_model(str(tmp_path / "whole"), tmp_path / "small", plan)
    assert main(["push", str(tmp_path / "small"), REPO]) == 0
    here = Embedder.from_pretrained(tmp_path / "small", device="cpu")
    assert Embedder.from_pretrained(REPO, device="cpu").space() == here.space()


def test_a_push_to_a_branch_leaves_the_main_one_alone(hub: FakeHub, make_model: Any, tmp_path: Path) -> None:
    models = {"main": make_model(seed=1), "v2": make_model(seed=2)}
    for branch, model in models.items():
        room.push(run_folder(model, tmp_path / branch) / "model", REPO, None if branch == "main" else branch)
    for branch, model in models.items():
        loaded = Embedder.from_pretrained(REPO, device="cpu", revision=branch)
        assert loaded.space() == model.space()


def test_files_of_the_model_before_are_removed_and_others_stay(
    hub: FakeHub, moe_model: Embedder, tmp_path: Path
) -> None:
    stale = {"model-00001-of-00001.safetensors": b"", "model.safetensors.index.json": b'{"weight_map": {}}'}
    others = dict.fromkeys(["figure.png", "onnx/model.onnx", "extra/own.model"], b"mine")
    hub.add(REPO, stale | others)
    room.push(run_folder(moe_model, tmp_path) / "model", REPO)
    files = hub.files(REPO) or {}
    assert not stale.keys() & files.keys()
    assert others.items() <= files.items()


def test_private_means_private(hub: FakeHub, moe_model: Embedder, tmp_path: Path) -> None:
    folder = run_folder(moe_model, tmp_path) / "model"
    room.push(folder, REPO, private=True)
    room.push(folder, REPO, private=True)
    assert hub.private[REPO]
    sha = hub.add("me/open", {})
    with pytest.raises(UserError, match="me/open exists and is public"):
        room.push(folder, "me/open", private=True)
    assert hub.branches["me/open"] == {"main": sha}


def test_a_dry_run_shows_the_files_and_asks_no_network(
    hub: FakeHub, moe_model: Embedder, tmp_path: Path, capsys: Any
) -> None:
    run = run_folder(moe_model, tmp_path / "run")
    assert main(["push", str(run), REPO, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"{(run / 'model' / 'model.safetensors').stat().st_size:,}" in shown
    assert "notes.txt" not in shown
    assert "nothing was uploaded" in shown
    assert not hub.requests


@pytest.mark.parametrize("repo_id", ["moles", "a/b/c", "me/mo les", "me/.moles", ""])
def test_a_bad_repository_name(
    repo_id: str, hub: FakeHub, moe_model: Embedder, tmp_path: Path, capsys: Any
) -> None:
    assert main(["push", str(run_folder(moe_model, tmp_path)), repo_id, "--dry-run"]) == 2
    assert "cannot name a repository" in capsys.readouterr().err
    assert not hub.requests


def test_what_is_no_whole_model_is_not_pushed(
    hub: FakeHub, moe_model: Embedder, tmp_path: Path, capsys: Any
) -> None:
    assert main(["push", str(tmp_path / "none"), REPO]) == 2
    weights = run_folder(moe_model, tmp_path) / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert main(["push", str(tmp_path), REPO]) == 2
    assert "damaged" in capsys.readouterr().err
    assert not hub.requests


def test_a_push_that_is_refused(hub: FakeHub, moe_model: Embedder, tmp_path: Path) -> None:
    hub.token = "hf_mole"
    with pytest.raises(UserError, match=r"could not push to me/moles.*HF_TOKEN \(HTTP 401\)$"):
        room.push(run_folder(moe_model, tmp_path) / "model", REPO)
    hub.stop()
    with pytest.raises(UserError, match="could not push to me/moles on the hub: no connection"):
        room.push(tmp_path / "model", REPO)


def test_a_card_the_hub_does_not_accept(hub: FakeHub, moe_model: Embedder, tmp_path: Path) -> None:
    folder = run_folder(moe_model, tmp_path) / "model"
    (folder / "README.md").write_text("---\nlicense: none of them\n---\n")
    with pytest.raises(UserError, match=r"README\.md.*license is none of ours") as error:
        room.push(folder, REPO)
    assert "\n" not in str(error.value)
    assert set(hub.files(REPO) or {}) == {".gitattributes"}
