"""The held-out loss is of pairs never trained on, and the best model by it is kept."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import MakeModel
from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.training import loop
from moembed.training.contrastive import gradcache
from moembed.training.contrastive.batch import SourceFormat, prepare
from moembed.training.contrastive.held_out import HeldOutLoss
from moembed.training.contrastive.task import ContrastiveTask, Mixture
from moembed.training.contrastive.train import none_held_out, opening_notes, train_contrastive
from moembed.training.parallel import ALONE
from moembed.training.task import Moment, Terms
from training_runs import PAIRS, assert_same_weights, checkpoints, metrics, run, settings


def test_the_last_rows_are_looked_at_and_never_trained_on(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    backward = gradcache.backward

    def spy(embed: object, chunks: object, loss: object, *rest: object) -> object:
        seen.update(loss.keywords["batch"].pairs)  # type: ignore[attr-defined]
        return backward(embed, chunks, loss, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(gradcache, "backward", spy)
    run(settings(steps=None, epochs=3, held_out=0.25, evaluate_every=3), make_model(), tmp_path)
    assert len(PAIRS) == 28
    assert seen <= set(PAIRS[:21])
    assert len(seen) > 15
    assert [line["step"] for line in metrics(tmp_path) if "held_out_loss" in line] == [3, 6]


def test_the_held_out_loss_is_that_of_the_saved_model(make_model: MakeModel, tmp_path: Path) -> None:
    config = settings(steps=4, save_every=2, evaluate_every=2)
    other = Source.from_pairs("other", PAIRS[:9])
    mixture = Mixture([Source.from_pairs("tiny", PAIRS)], validation=[other])
    train_contrastive(config, make_model(dropout=0.1), mixture, tmp_path)
    for step in (2, 4):
        model = Embedder.from_pretrained(tmp_path / "checkpoints" / f"step-{step:06d}", device="cpu")
        task = ContrastiveTask(config, model, mixture, ALONE)
        batch = prepare(PAIRS[:9], SourceFormat("query", "document", "info_nce"), model.tokenizer, config)
        expected = {"other": task.loss(batch)}
        line = metrics(tmp_path)[step - 1]
        assert line["held_out"] == pytest.approx(expected, rel=1e-5)
        assert line["held_out_loss"] == pytest.approx(expected["other"], rel=1e-5)


def test_the_best_model_is_kept(make_model: MakeModel, tmp_path: Path) -> None:
    """Trained far too fast, it gets worse; what is kept is the step with the lowest loss."""
    optim = {"learning_rate": 0.05, "warmup_steps": 0, "schedule": "constant"}
    config = settings(steps=8, save_every=1, keep_checkpoints=9, evaluate_every=1, held_out=0.3, optim=optim)
    run(config, make_model(num_layers=2), tmp_path)
    losses = [line["held_out_loss"] for line in metrics(tmp_path)]
    best = losses.index(min(losses)) + 1
    facts = json.loads((tmp_path / "checkpoints" / "best" / "best.json").read_text())
    assert facts == {"step": best, "held_out_loss": losses[best - 1]}
    assert_same_weights(tmp_path / "checkpoints" / "best", tmp_path / "checkpoints" / f"step-{best:06d}")


def test_looking_changes_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    for every in (1, 99):
        other = Source.from_pairs("other", PAIRS[:9])
        mixture = Mixture([Source.from_pairs("tiny", PAIRS)], validation=[other])
        config = settings(steps=3, evaluate_every=every)
        train_contrastive(config, make_model(dropout=0.2), mixture, tmp_path / str(every))
    assert_same_weights(tmp_path / "1" / "model", tmp_path / "99" / "model")
    assert checkpoints(tmp_path / "1") == ["best", "step-000002", "step-000003"]


def test_large_sources_are_looked_at_evenly(make_model: MakeModel) -> None:
    pairs = [PAIRS[i % len(PAIRS)] for i in range(1000)]
    task = ContrastiveTask(
        settings(held_out=0.5), make_model(), Mixture([Source.from_pairs("many", pairs)]), ALONE
    )
    held_out = HeldOutLoss(task, chooses=True)
    assert held_out.names == ["many"]
    assert len(held_out.batches[0].pairs) == 256
    assert (held_out.batches[0].pairs[0], held_out.batches[0].pairs[-1]) == (pairs[500], pairs[999])


def test_the_lowest_loss_is_the_best_where_it_decides(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ContrastiveTask(settings(), make_model(), Mixture([Source.from_pairs("tiny", PAIRS)]), ALONE)
    moment = Moment(1, 0.0, False, Terms(0.0, 8))
    for chooses in (True, False):
        held_out, found = HeldOutLoss(task, chooses), []
        for loss in (3.0, 3.0, 2.0, 4.0):
            monkeypatch.setattr(held_out, "losses", lambda loss=loss: {"a": loss - 1, "b": loss + 1})
            found.append(held_out.look(moment).best)
        assert found == (
            [("held_out_loss", 3.0), None, ("held_out_loss", 2.0), None] if chooses else [None] * 4
        )


def test_sources_of_one_name_are_all_looked_at(make_model: MakeModel) -> None:
    """As train.jsonl of several folders are; the mean is that of all."""
    sources = [Source.from_pairs("train", pairs) for pairs in (PAIRS, PAIRS[::-1])]
    mixture = Mixture(sources, validation=[Source.from_pairs("train", PAIRS[:9])])
    monitor = HeldOutLoss(ContrastiveTask(settings(held_out=0.25), make_model(), mixture, ALONE), True)
    look = monitor.look(Moment(1, 0.0, True, Terms(0.0, 8)))
    losses = [monitor.task.loss(batch) for batch in monitor.batches]
    assert len({round(loss, 5) for loss in losses}) == 3
    assert look.log["held_out"] == pytest.approx(
        dict(zip(["train", "train (2)", "train (3)"], losses, strict=True))
    )
    assert look.log["held_out_loss"] == pytest.approx(sum(losses) / 3)


def test_there_is_a_look_at_the_end_of_a_run_by_the_clock(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(100))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    run(settings(steps=None, minutes=3 / 60, held_out=0.3, evaluate_every=99), make_model(), tmp_path)
    assert [line["step"] for line in metrics(tmp_path) if "held_out_loss" in line] == [3]
    assert "best" in checkpoints(tmp_path)


def test_a_share_that_is_no_pair_is_told() -> None:
    assert none_held_out(0.01, [28, 900, 9], [28, 891, 9], ["a", "b", "c"]) == [
        "held_out 0.01 is less than one pair of a and of 1 more: none of them is held out"
    ]
    assert none_held_out(0.0, [28], [28], ["a"]) == none_held_out(0.5, [28], [14], ["a"]) == []


def test_what_is_said_at_the_start_tells_of_it(make_model: MakeModel) -> None:
    mixture = Mixture([Source.from_pairs("tiny", PAIRS)])
    task = ContrastiveTask(settings(held_out=0.01), make_model(), mixture, ALONE)
    assert "held_out 0.01 is less than one pair of tiny: none of them is held out" in opening_notes(task)
