"""Signs in a run: off is plain bit for bit, on trains them, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from conftest import NewModel
from moembed.embedder import Embedder
from moembed.losses.binary import imbalance, signs
from moembed.runs.train import load_recipe
from moembed.training.contrastive.settings import BinaryConfig, ContrastiveConfig, LossConfig
from moembed.types import UserError
from training_runs import PAIRS, assert_same_weights, metrics, run, settings

OFF = {"weight": 0, "balance": 0, "decorrelation": 0}


def test_terms_of_no_weight_train_the_same_model(new_model: NewModel, tmp_path: Path) -> None:
    run(settings(steps=3), new_model(), tmp_path / "plain")
    run(settings(steps=3, loss={"binary": OFF}), new_model(), tmp_path / "off")
    assert_same_weights(tmp_path / "plain" / "model", tmp_path / "off" / "model")
    assert metrics(tmp_path / "plain") == metrics(tmp_path / "off")


def test_balance_is_learned(new_model: NewModel, tmp_path: Path) -> None:
    found = {}
    for name, binary in {"plain": None, "balanced": {**OFF, "balance": 50}}.items():
        run(settings(steps=12, loss={"binary": binary}), new_model(), tmp_path / name)
        model = Embedder.from_pretrained(tmp_path / name / "model", dtype="float32")
        array = model.vectors([pair.document for pair in PAIRS], role="document").array
        found[name] = float(imbalance(signs(torch.tensor(array), model.dim)))
    assert found["balanced"] < found["plain"]


def test_what_does_not_fit_is_refused(new_model: NewModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss.binary.bits 999 go beyond the model's \d+ coordinates"):
        run(settings(steps=1, loss={"binary": {"bits": 999}}), new_model(), tmp_path / "run")
    with pytest.raises(ValidationError, match="no temperature of its own"):
        LossConfig.model_validate(
            {"learn_temperature": "per_dim", "matryoshka": {"dims": [8]}, "binary": {}, "temperature": 0.05}
        )


def test_its_recipe_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEMBED_DATA", "data")
    config = load_recipe(Path(__file__).parents[3] / "recipes" / "systems" / "binary.yaml", [])
    assert config.loss.binary == BinaryConfig()
    assert ContrastiveConfig(steps=1).loss.binary is None
