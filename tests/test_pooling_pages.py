"""The pages about poolings and the recipes that they name say nothing that does not exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from conftest import Run
from moembed.config import read_values
from moembed.experiment.settings import read_plan
from moembed.runs.stages import plan_stages
from moembed.runs.train import TrainConfig

ROOT = Path(__file__).parents[1]
REQUIRED = {"data": "pairs.jsonl", "out": "runs/x", "steps": 1}


def rows(page: str, heading: str) -> list[list[str]]:
    """Cells of the table below a heading of a page, its head and rule left out."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(heading)[2]
    lines = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_cell_of_the_choice_is_a_value_that_a_recipe_takes() -> None:
    found = rows("choose-a-pooling.md", "## Which one")
    assert len(found) >= 7
    for _, attention, pooling, include, _ in found:
        options = {"name": pooling.strip("`"), "include_prompt": yaml.safe_load(include.strip("`"))}
        values = REQUIRED | {"attention": attention.strip("`"), "pooling": options}
        assert TrainConfig.model_validate(values).pooling is not None


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "systems").glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_of_systems_that_pool_parse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "stages" in values:
        monkeypatch.setenv("MOEMBED_DATA", "data")
        plan_stages(read_values(path))
    elif "pooling" in values:
        assert TrainConfig.model_validate(values).pooling is not None


def test_the_five_designs_are_one_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEMBED_DATA", str(tmp_path))
    plan = read_plan(ROOT / "recipes" / "experiments" / "pooling.yaml", [], 3)
    recipes = [job.config for job in plan.jobs]
    found = {(recipe.pooling.name, recipe.attention) for recipe in recipes if recipe.pooling}
    learning = {(n, a) for n in ("latent_attention", "multi_layer") for a in ("causal", "bidirectional")}
    assert found == learning | {("lasttoken", "causal")}


def key_exists(model: Any, path: str) -> bool:
    """Whether a recipe has a key, dots for keys inside; of a list, the keys of its entries."""
    first, _, rest = path.partition(".")
    if not (isinstance(model, type) and issubclass(model, BaseModel)) or first not in model.model_fields:
        return False
    if not rest:
        return True
    inside = [model.model_fields[first].annotation]
    while inside:
        kind = inside.pop()
        if key_exists(kind, rest):
            return True
        inside += get_args(kind)
    return False


def test_every_key_of_the_taxonomy_is_one_of_a_recipe() -> None:
    named = [key for row in rows("taxonomy.md", "## Keys of a recipe") for key in row[2].split(", ")]
    assert len(named) >= 20
    assert [key for key in named if not key_exists(TrainConfig, key.strip("`"))] == []
    assert not key_exists(TrainConfig, "pooling.depth")
    assert not key_exists(TrainConfig, "data.nothing")


def test_every_command_of_the_taxonomy_is_there(run: Run) -> None:
    code, shown, _ = run("--help")
    assert code == 0
    named = [name for row in rows("taxonomy.md", "## Commands") for name in row[2].split(", ")]
    assert len(named) >= 9
    words = set(re.findall(r"[\w-]+", shown))
    assert [name for name in named if name.strip("`").split()[1] not in words] == []
