"""Masks, weights and terms of a recipe in a run: what is logged, resumed, refused, and equal to plain."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from conftest import MakeModel, NewModel
from moembed.data.sources import Source
from moembed.losses.contrastive import info_nce
from moembed.training.contrastive.settings import ContrastiveConfig
from moembed.training.contrastive.task import ContrastiveTask, Mixture
from moembed.training.contrastive.train import train_contrastive
from moembed.training.parallel import ALONE
from moembed.types import Pair, UserError
from training_runs import PAIRS, assert_same_weights, interrupt_at, metrics, run, settings

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


def test_a_triplet_loss_learns_and_counts_its_negatives(new_model: NewModel, tmp_path: Path) -> None:
    mixture = Mixture([Source.from_pairs("hard", HARD)])
    for negatives in ("own", "hardest"):
        loss = {"kind": "triplet", "triplet": {"margin": 0.5, "negatives": negatives}}
        train_contrastive(settings(steps=8, loss=loss), new_model(), mixture, tmp_path / negatives)
        lines = metrics(tmp_path / negatives)
        assert all(line["effective_negatives"] <= 1 for line in lines)
        assert lines[-1]["info_nce"] < lines[0]["info_nce"]


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"kind": "triplet", "weight": {"kind": "focal"}}, "loss.weight is of no use to the loss triplet"),
        ({"kind": "triplet", "learn_temperature": True}, "loss.learn_temperature is of no use"),
        (
            {"triplet": {"margin": 0.5}},
            "settings of the loss triplet, which no source has",
        ),
    ],
)
def test_settings_that_a_kind_has_not(
    loss: dict[str, Any], words: str, make_model: MakeModel, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        run(settings(loss=loss), make_model(), tmp_path)


def test_pairs_without_hard_negatives_are_said_or_refused(make_model: MakeModel, tmp_path: Path) -> None:
    config = settings(batch_size=4, loss={"in_batch": False})
    mixture = Mixture([Source.from_pairs("some", [*HARD[:6], *PAIRS[6:9]])])
    task = ContrastiveTask(config, make_model(), mixture, ALONE)
    assert "some: 3 of 9 pairs have no hard negative and teach nothing, for loss.in_batch is false" in (
        task.notes
    )
    with pytest.raises(UserError, match="tiny has no hard negatives, so it could teach nothing"):
        run(config, make_model(), tmp_path)
    with pytest.raises(UserError, match="symmetric_info_nce looks at other pairs of the batch"):
        run(settings(loss={"in_batch": False, "kind": "symmetric_info_nce"}), make_model(), tmp_path)
    for wrong in ({"negatives": 0, "loss": {"in_batch": False}}, {"loss": {"in_batch": False, "queue": 9}}):
        with pytest.raises(ValueError, match="in_batch is false"):
            settings(**wrong)


@pytest.mark.parametrize("kind", ["pair", "list"])
def test_a_run_with_mixed_negatives_resumes_bit_for_bit(
    kind: str, new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"steps": 4, "loss": {"mixing": {"kind": kind}}}
    run(settings(**changes), new_model(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(4, patch, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(settings(**changes), new_model(), tmp_path / "cut")
    run(settings(**changes), new_model(), tmp_path / "cut", resume=True)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    assert_same_weights(tmp_path / "whole" / "model", tmp_path / "cut" / "model")
    assert metrics(tmp_path / "whole")[0]["effective_negatives"] == 8  # one more than there are documents


def test_each_dim_learns_its_own_temperature(make_model: MakeModel, tmp_path: Path) -> None:
    """The gradient of each is that of its own prefix's loss; all start where one for all would."""
    loss = {"learn_temperature": "per_dim", "matryoshka": {"dims": [16, 8, 4], "weights": [1, 0.5, 2]}}
    config = settings(loss=loss | {"temperature": 0.1})
    task = ContrastiveTask(config, make_model(), Mixture([Source.from_pairs("hard", HARD)]), ALONE)
    batch = task.batch(0)
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(batch.chunks.rows, 16, generator=generator), dim=-1)
    scale = task.objective.log_scale
    assert scale is not None
    (found_D,) = torch.autograd.grad(task.objective({4: rows}, batch), scale)
    for place, (dim, weight) in enumerate([(16, 1), (8, 0.5), (4, 2)]):
        log_scale = torch.tensor(-math.log(0.1), requires_grad=True)
        cut = F.normalize(rows[:, :dim], dim=-1)
        own = info_nce(cut[:8], cut[8:], torch.arange(8), batch.known, temperature=(-log_scale).exp())
        (expected,) = torch.autograd.grad(weight * own, log_scale)
        torch.testing.assert_close(found_D[place], expected)
    run(config.model_copy(update={"steps": 3}), make_model(), tmp_path)
    temperatures = metrics(tmp_path)[-1]["temperatures"]
    assert list(temperatures) == ["16", "8", "4"]
    assert len(set(temperatures.values())) == 3


def test_a_temperature_per_dim_needs_dims() -> None:
    with pytest.raises(ValueError, match="per_dim needs the dims"):
        settings(loss={"learn_temperature": "per_dim"})


@pytest.mark.parametrize(
    "loss", [{"matryoshka": {"dims": [8, 4], "weights": [1, -1]}}, {"depths": {2: 1, 4: -1}}]
)
def test_no_prefix_and_no_depth_is_trained_away_from_the_answers(loss: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        settings(loss=loss)
