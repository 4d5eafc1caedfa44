"""Masks, weights and terms of a recipe in a run: what is logged, resumed, refused, and equal to plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import MakeModel, NewModel
from moembed.data.sources import Source
from moembed.training.contrastive.settings import ContrastiveConfig
from moembed.training.contrastive.task import ContrastiveTask, Mixture
from moembed.training.parallel import ALONE
from moembed.types import Pair, UserError
from training_runs import PAIRS, assert_same_weights, metrics, run, settings

HARD = [Pair(pair.query, pair.document, (PAIRS[i - 1].document,)) for i, pair in enumerate(PAIRS)]


def test_a_run_says_how_many_negatives_count(new_model: NewModel, tmp_path: Path) -> None:
    run(settings(steps=2), new_model(), tmp_path / "plain")
    run(settings(steps=2, loss={"mask": {"margin": -1}}), new_model(), tmp_path / "masked")
    weights = [{"kind": "hardness", "alpha": 9}, {"kind": "focal"}]
    run(settings(steps=2, loss={"weight": weights}), new_model(), tmp_path / "weighed")
    plain, masked, weighed = (metrics(tmp_path / name) for name in ("plain", "masked", "weighed"))
    assert [line["effective_negatives"] for line in plain] == [7.0, 7.0]  # a batch of 8, all texts different
    assert masked[0]["effective_negatives"] < 7
    assert 0 < weighed[0]["effective_negatives"] < 7
    assert 0 < weighed[0]["mean_weight"] < 1
    assert "mean_weight" not in plain[0]


def test_weights_that_weigh_nothing_train_the_same_model(new_model: NewModel, tmp_path: Path) -> None:
    """With experts, dropout, jitter and chunks: the same losses and weights to the last bit."""
    run(settings(steps=3), new_model(), tmp_path / "plain")
    off = {"weight": [{"kind": "focal", "gamma": 0}, {"kind": "hardness", "alpha": 0}], "mask": {"margin": 2}}
    run(settings(steps=3, loss=off), new_model(), tmp_path / "off")
    assert_same_weights(tmp_path / "plain" / "model", tmp_path / "off" / "model")
    shown = [{**line, "mean_weight": None} for line in metrics(tmp_path / "off")]
    assert shown == [{**line, "mean_weight": None} for line in metrics(tmp_path / "plain")]


def test_the_held_out_loss_is_that_of_the_plain_loss(new_model: NewModel, tmp_path: Path) -> None:
    first = []
    for loss in ({}, {"weight": {"kind": "focal"}, "directions": ["query_to_query"]}):
        folder = tmp_path / str(len(first))
        changes: dict[str, Any] = {"held_out": 0.3, "evaluate_every": 1, "optim": {"learning_rate": 1e-12}}
        run(settings(steps=1, loss=loss, **changes), new_model(), folder)
        first.append(metrics(folder)[0]["held_out_loss"])
    assert first[0] == pytest.approx(first[1], rel=1e-5)


def test_hard_negatives_belong_to_their_pair(make_model: MakeModel) -> None:
    weight = {"kind": "hardness", "alpha": 9, "on": "hard"}
    values = {"steps": 1, "batch_size": 4, "loss": {"weight": weight}}
    config = ContrastiveConfig.model_validate(values)
    task = ContrastiveTask(config, make_model(), Mixture([Source.from_pairs("hard", HARD)]), ALONE)
    batch = task.batch(0)
    assert batch.owner_N.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    terms = task.backward(0, batch)
    negatives = 7 - batch.known.true_entries(torch.arange(4))[0].bincount().float().sub(1).mean()
    assert terms.log["effective_negatives"] < float(negatives)


def test_a_symmetric_loss_has_no_further_terms(make_model: MakeModel, tmp_path: Path) -> None:
    config = settings(loss={"kind": "symmetric_info_nce", "directions": ["query_to_query"]})
    with pytest.raises(UserError, match="further terms of info_nce, and symmetric_info_nce has none"):
        run(config, make_model(), tmp_path)
