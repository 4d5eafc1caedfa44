"""Settings that change with the run: straight lines, constant ones bit for bit, one sentence if wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import NewModel
from moembed.config import validate
from moembed.data.sources import Source
from moembed.training.contrastive.schedules import at, value
from moembed.training.contrastive.settings import ContrastiveConfig
from moembed.training.contrastive.task import Mixture
from moembed.training.contrastive.train import train_contrastive
from moembed.types import Pair, UserError
from training_runs import PAIRS, assert_same_weights, interrupt_at, metrics, run, settings

HARD = [Pair(p.query, p.document, tuple(PAIRS[i - k].document for k in (3, 4))) for i, p in enumerate(PAIRS)]
WEIGHT = {"kind": "margin", "alpha": 0.5}


@given(st.dictionaries(st.floats(0, 1), st.floats(0, 9), min_size=1, max_size=4), st.floats(0, 1))
def test_values_lie_on_straight_lines(points: dict[float, float], share: float) -> None:
    shares = sorted(points)
    before = [s for s in shares if s <= share]
    after = [s for s in shares if s >= share]
    if not before or not after:
        expected = points[shares[0] if not before else shares[-1]]
    else:
        left, right = before[-1], after[0]
        part = (share - left) / (right - left) if right > left else 0.0
        expected = points[left] + part * (points[right] - points[left])
    assert value(points, share) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_curriculum_is_what_its_steps_say(new_model: NewModel, tmp_path: Path) -> None:
    """The weight grows, hard negatives come in, batches grow; the log has all three."""
    schedules = {
        "loss.weight.alpha": {0: 0, 0.5: 1},
        "negatives": {0: 0, 1: 2},
        "batch_size": {0.25: 4, 0.75: 8},
    }
    config = settings(steps=8, loss={"weight": WEIGHT}, schedules=schedules)
    train_contrastive(config, new_model(), Mixture([Source.from_pairs("hard", HARD)]), tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert [line["schedules"]["loss.weight.alpha"] for line in lines] == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert [line["schedules"]["negatives"] for line in lines] == [0, 0, 1, 1, 1, 1, 2, 2]
    assert [line["pairs"] for line in lines] == [4, 4, 4, 5, 6, 7, 8, 8]
    assert lines[0]["mean_weight"] == 1.0
    assert all(line["mean_weight"] != 1 for line in lines[1:])
    assert lines[0]["effective_negatives"] == 3
    assert lines[-1]["effective_negatives"] > 8  # eight documents and what is left of sixteen hard negatives
    assert at(config, 0.5).loss.weight[0].alpha == 1.0


def test_a_constant_schedule_is_the_constant_run_bit_for_bit(new_model: NewModel, tmp_path: Path) -> None:
    mixture = Mixture([Source.from_pairs("hard", HARD)])
    plain = settings(steps=3, negatives=1, loss={"weight": WEIGHT})
    schedules = {"loss.weight.alpha": {0: 0.5}, "negatives": {0.3: 1, 1: 1}, "batch_size": {0: 8}}
    same = settings(steps=3, loss={"weight": WEIGHT | {"alpha": 0.1}}, schedules=schedules)
    assert at(plain, 0.3) is plain
    for name, config in (("plain", plain), ("same", same)):
        train_contrastive(config, new_model(), mixture, tmp_path / name)
    assert_same_weights(tmp_path / "plain" / "model", tmp_path / "same" / "model")
    first, second = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("plain", "same"))
    assert first == second


def test_a_scheduled_run_resumes_bit_for_bit(
    new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"steps": 6, "loss": {"weight": WEIGHT}}
    changes["schedules"] = {"loss.weight.alpha": {0: 0, 1: 1}, "batch_size": {0: 4, 1: 8}}
    run(settings(**changes), new_model(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(4, patch, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(settings(**changes), new_model(), tmp_path / "cut")
    run(settings(**changes), new_model(), tmp_path / "cut", resume=True)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    assert_same_weights(tmp_path / "whole" / "model", tmp_path / "cut" / "model")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedules": {"optim.eps": {0: 1}}}, "schedules has no 'optim.eps'; what can change with the run:"),
        ({"schedules": {"negatives": {}}}, "the schedule of negatives is empty"),
        ({"schedules": {"negatives": {0: 0, 1.5: 2}}}, "has the share 1.5; shares of a run are 0 to 1"),
        ({"schedules": {"negatives": {0: -1}}}, "has the value -1; it is a whole number from 0 on"),
        ({"schedules": {"negatives": {0: 0.5}}}, "has the value 0.5; it is a whole number"),
        ({"schedules": {"negatives": {0: 1}}, "negatives": 2}, "leave negatives itself out"),
        ({"schedules": {"batch_size": {0: 8, 1: 16}}}, "set batch_size to the largest of the schedule"),
        ({"schedules": {"negatives": {0: 1}}, "steps": None, "minutes": 1}, "is done: give steps or epochs"),
        (
            {"schedules": {"batch_size": {0: 256}}, "steps": None, "epochs": 1},
            "a schedule of batch_size needs steps",
        ),
        (
            {"schedules": {"loss.weight.alpha": {0: 2}}, "loss": {"weight": WEIGHT}},
            "the schedule of loss.weight.alpha has the value 2: alpha of the weight margin is a share",
        ),
        (
            {"schedules": {"loss.weight.gamma": {0: -2}}, "loss": {"weight": {"kind": "focal"}}},
            "the schedule of loss.weight.gamma has the value -2",
        ),
        ({"schedules": {"loss.queue": {0: 0, 1: 8}}}, "loss.queue has a schedule and is 0: set it to the"),
        ({"schedules": {"loss.queue": {0: 9}}, "loss": {"queue": 8}}, "the value 9 and the queue holds 8"),
        (
            {"schedules": {"negatives": {0: 2, 1: 0}}, "loss": {"in_batch": False}},
            "loss.in_batch is false and the schedule of negatives has the value 0: there would be no",
        ),
        (
            {"schedules": {"negatives": {0: 0, 1: 2}}, "distill": {"teachers": "a", "candidates": "own"}},
            "distill.candidates own ranks a query's hard negatives, and the schedule of negatives has",
        ),
        ({"schedules": {"loss.weight.alpha": {0: 1}}}, "0 weights of loss.weight have alpha: it is for one"),
    ],
)  # fmt: skip
def test_a_schedule_that_leaves_its_range_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(ContrastiveConfig, {"steps": 5} | changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
