"""What `import moembed` promises and costs, and that docs, recipes and commands name what exists."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import moembed
from moembed.cli import app
from moembed.config import load
from moembed.experiment.settings import read_plan
from moembed.runs.distill import DistillConfig, is_distillation
from moembed.runs.pretrain import PretrainConfig
from moembed.runs.stages import load_stages
from moembed.runs.train import TrainConfig
from moembed.runs.train_reranker import RerankerConfig, is_reranking
from moembed.runs.training_run import has_stages

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "drift",
    "align",
    "fuse",
    "prune",
    "compress-vocabulary",
    "quantize",
    "rerank",
    "merge",
    "distill",
    "demo",
    "train",
    "upcycle",
    "evaluate",
    "compare",
    "experiment",
    "stress",
    "synth",
    "embed",
    "index",
    "search",
    "serve",
    "inspect",
    "export",
    "bench",
    "push",
    "tokenizer",
    "pretrain",
    "data",
    "filter",
    "mine",
}


def test_the_public_names_exist_and_are_all_there_is() -> None:
    assert sorted(dir(moembed)) == sorted(moembed.__all__)
    for name in moembed.__all__:
        assert getattr(moembed, name) is not None
    with pytest.raises(AttributeError, match="Embeder"):
        _ = moembed.Embeder


def test_the_interface_of_the_embedder() -> None:
    names = {"from_pretrained", "encode", "encode_query", "encode_document", "save_pretrained"}
    assert names | {"num_parameters"} <= set(dir(moembed.Embedder))


def test_importing_costs_little() -> None:
    """Nothing but the standard library is loaded, and nothing slow of it: a clock measures the machine."""
    code = "import sys; old = set(sys.modules); import moembed; print(*set(sys.modules) - old)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded - sys.stdlib_module_names == {"moembed"}
    assert not loaded & {"asyncio", "multiprocessing", "unittest", "sqlite3", "email", "http"}


def test_help_needs_no_torch() -> None:
    code = "import sys, moembed.cli as c; c.main(['train', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def commands(group: Any, name: str = "moembed") -> Iterator[tuple[str, Any]]:
    """Every command by its full name; a group such as `moembed data` stands for the commands in it."""
    for part, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {part}")
        else:
            yield f"{name} {part}", command


def test_the_commands() -> None:
    group = typer.main.get_command(app)
    assert set(group.commands) == COMMANDS  # type: ignore[attr-defined]
    for name, command in commands(group):
        assert f"Example: `{name} " in (command.help or ""), f"{name} --help shows no example"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEMBED_DATA", "data")
    if path.parent.name == "experiments":
        if path.name != "common.yaml":  # which the others are made of
            assert read_plan(path, [], 1).jobs
        return
    if has_stages(path):
        assert load_stages(path, []).stages
        return
    usual = RerankerConfig if is_reranking(path, []) else TrainConfig
    usual = DistillConfig if is_distillation(path, []) else usual
    load(PretrainConfig if "moembed pretrain" in path.read_text().partition("base:")[0] else usual, path)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name
)
def test_docs_name_commands_files_and_links_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"^(?:\$ )?moembed ([a-z-]+)", text, flags=re.MULTILINE):
        assert name in COMMANDS, f"moembed {name}"
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for recipe in re.findall(r"recipes/[\w/.-]+\.yaml", text):
        assert (ROOT / recipe).exists(), recipe


def test_the_readme_runs_the_same_test_command_as_ci() -> None:
    assert "make test" in (ROOT / "README.md").read_text("utf-8")
    assert "make check test" in (ROOT / ".ci" / "run").read_text("utf-8")
