"""Training learns, repeats itself, ends when told to and shows the batch it could not learn from."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import MakeModel, NewModel
from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.folder.read import read_folder
from moembed.machine import choose_precision, has_bfloat16
from moembed.training import loop
from moembed.training.contrastive.settings import ContrastiveConfig
from moembed.training.contrastive.task import Mixture
from moembed.training.contrastive.train import leftovers, train_contrastive
from moembed.training.interrupt import interruptible
from moembed.training.log import read_metrics
from moembed.training.optim import learning_rate
from moembed.types import Pair, UserError
from training_runs import OPTIM, PAIRS, assert_same_weights, checkpoints, interrupt_at, metrics, run, settings

# ---- learning ------------------------------------------------------------------------------------


def test_the_loss_goes_down_and_the_model_is_saved(new_model: NewModel, tmp_path: Path) -> None:
    model = new_model()
    trained = run(settings(steps=60, save_every=100), model, tmp_path)
    loss = [line["info_nce"] for line in metrics(tmp_path)]
    assert sum(loss[-5:]) < 0.6 * sum(loss[:5])
    assert (trained.steps, trained.pairs, trained.stopped_by_user) == (60, 60 * 8, False)
    assert not model.training
    saved = Embedder.from_pretrained(tmp_path, device="cpu")
    assert saved.space() == model.space()
    assert checkpoints(tmp_path) == ["step-000060"]


def test_the_same_seed_gives_the_same_curve_and_weights(new_model: NewModel, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.rand(7)  # what happened before must not matter
        run(settings(steps=3, seed=seed), new_model(), tmp_path / name)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") != metrics(tmp_path / "c")
    assert_same_weights(tmp_path / "a" / "model", tmp_path / "b" / "model")


def test_every_line_of_the_metrics_tells_the_step(new_model: NewModel, tmp_path: Path) -> None:
    config = settings(loss={"balance": 0.1, "z": 0.01}, query_length=4)
    trained = run(config, new_model(), tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["elapsed"] for line in lines] == sorted(line["elapsed"] for line in lines)
    for line in lines:
        assert line["loss"] == pytest.approx(line["info_nce"] + line["router_loss"])
        assert line["learning_rate"] == learning_rate(OPTIM, line["step"] - 1, (line["step"] - 1) / 6)
        assert (line["pairs"], line["source"]) == (8, "tiny")
        assert all(
            line[key] > 0 for key in ("grad_norm", "tokens", "elapsed", "pairs_per_second", "router_loss")
        )
        (part,) = line["router"]
        assert part["layer"] == 1
        assert sum(part["load"]) == pytest.approx(1, abs=1e-3)
        assert 0 < part["entropy"] <= math.log(4) + 1e-4
        assert 0.5 <= part["top_mass"] <= 1
    assert sum(line["truncated"] for line in lines) == trained.truncated > 0


def test_plain_progress_lines_appear_where_there_is_no_terminal(
    new_model: NewModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings(steps=2), new_model(), tmp_path)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "step 1/2  loss " in shown.err
    assert "ETA" in shown.err
    assert "load " in shown.err


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"loss": {"kind": "symmetric_info_nce"}}])
def test_other_ways_to_train_learn_too(
    changes: dict[str, Any], make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(num_layers=2)
    run(settings(steps=25, **changes), model, tmp_path)
    loss = [line["loss"] for line in metrics(tmp_path)]
    assert sum(loss[-5:]) < 0.8 * sum(loss[:5])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(line["router"] == [] and line["router_loss"] == 0 for line in metrics(tmp_path))


def test_equal_pairs_are_no_negatives_of_each_other(new_model: NewModel, tmp_path: Path) -> None:
    same = Source.from_pairs("same", [Pair("what owl", "the owl")] * 8)
    train_contrastive(settings(steps=1), new_model(), Mixture([same]), tmp_path)
    assert metrics(tmp_path)[0]["info_nce"] == 0.0


def test_auto_precision_is_one_the_machine_has() -> None:
    assert choose_precision("float32", "cpu") == torch.float32
    assert choose_precision("bfloat16", "cpu") == torch.bfloat16
    expected = torch.bfloat16 if has_bfloat16() else torch.float32
    assert choose_precision("auto", "cpu") == expected


def test_clipping_bounds_the_step_and_zero_switches_it_off(
    new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def measure(self: torch.optim.AdamW, closure: None = None) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", measure)
    for name, clip in (("tight", 0.01), ("off", 0.0)):
        optim = OPTIM.model_copy(update={"clip": clip})
        run(settings(steps=1, optim=optim), new_model(), tmp_path / name)
    logged = [metrics(tmp_path / name)[0]["grad_norm"] for name in ("tight", "off")]
    assert norms == pytest.approx([0.01, logged[1]], rel=1e-3)
    assert logged[0] == logged[1] > 0.1


# ---- how a run ends ------------------------------------------------------------------------------


def test_epochs_are_passes_over_the_pairs(new_model: NewModel, tmp_path: Path) -> None:
    assert len(PAIRS) == 28  # three batches of eight; the four left over sit each pass out
    assert run(settings(steps=None, epochs=2), new_model(), tmp_path / "a").steps == 6
    assert run(settings(steps=None, epochs=0.1), new_model(), tmp_path / "b").steps == 1


def test_a_budget_of_minutes_ends_the_run_and_drives_the_schedule(
    new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch)
    config = settings(steps=None, minutes=5 / 60)
    trained = run(config, new_model(), tmp_path)
    assert (trained.steps, trained.seconds) == (5, 5.0)
    rates = [line["learning_rate"] for line in metrics(tmp_path)]
    assert rates == [learning_rate(OPTIM, step, step / 5) for step in range(5)]


def test_the_minutes_before_an_interruption_count(
    new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(steps=None, minutes=5 / 60)
    set_clock(monkeypatch)
    with monkeypatch.context() as patch:
        interrupt_at(3, patch, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert run(config, new_model(), tmp_path).seconds == 3.0
    set_clock(monkeypatch)
    again = run(config, new_model(), tmp_path, resume=True)
    assert (again.steps, again.seconds) == (5, 5.0)


def set_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop reads it once before the run and once a step; a second passes from one look to the next."""
    seconds = iter(range(100))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(seconds)))


@pytest.mark.parametrize("ends", [{}, {"steps": 3, "epochs": 1}, {"steps": 3, "minutes": 1}])
def test_a_run_has_exactly_one_end(ends: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="exactly one of steps, epochs and minutes"):
        ContrastiveConfig.model_validate(ends)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_the_step_and_saves(
    number: signal.Signals,
    new_model: NewModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(settings(), new_model(), tmp_path / "whole")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        interrupt_at(3, patch, lambda: os.kill(os.getpid(), number))
        trained = run(settings(), new_model(), tmp_path / "cut")
    assert (trained.steps, trained.stopped_by_user) == (3, True)
    assert checkpoints(tmp_path / "cut")[-1] == "step-000003"
    assert signal.getsignal(number) is before
    Embedder.from_pretrained(tmp_path / "cut", device="cpu")
    assert run(settings(), new_model(), tmp_path / "cut", resume=True).steps == 6
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert_same_weights(tmp_path / "cut" / "model", tmp_path / "whole" / "model")


def test_a_second_interrupt_stops_at_once() -> None:
    with interruptible() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_many_requests_are_one_where_signals_come_twice() -> None:
    with interruptible(patient=True) as interrupt:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)
    with interruptible() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert interrupt.asked


# ---- bad input -----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run_and_shows_the_batch(
    new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_model()

    def poison() -> None:
        with torch.no_grad():
            model.encoder.word.weight[5:].fill_(float("inf"))

    interrupt_at(4, monkeypatch, poison)
    kept = tmp_path / "checkpoints" / "step-000002"
    with pytest.raises(UserError, match=rf"not finite at step 4; .*the last good checkpoint is {kept}"):
        run(settings(), model, tmp_path)
    lines = (tmp_path / "offending-batch.jsonl").read_text(encoding="utf-8").splitlines()
    batch = [
        Pair(**{**json.loads(line), "negatives": tuple(json.loads(line)["negatives"])}) for line in lines
    ]
    assert len(batch) == 8
    assert set(batch) <= set(PAIRS)
    assert checkpoints(tmp_path) == ["step-000002"]
    assert len(metrics(tmp_path)) == 3
    assert all(torch.isfinite(tensor).all() for tensor in read_folder(kept).state.values())


def test_a_loss_not_finite_at_once_says_that_there_is_no_checkpoint(
    new_model: NewModel, tmp_path: Path
) -> None:
    model = new_model()
    torch.nn.init.constant_(model.encoder.word.weight, float("nan"))
    with pytest.raises(UserError, match=r"at step 1; .*no checkpoint had been written yet"):
        run(settings(), model, tmp_path)


def test_fewer_pairs_than_a_batch_is_refused(new_model: NewModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="source tiny has 28 rows, fewer than the batch size 29"):
        run(settings(batch_size=29), new_model(), tmp_path)


def test_weights_that_the_last_update_broke_are_not_saved(
    new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the last step is finite; what the optimiser makes of it is not."""
    step, calls = torch.optim.AdamW.step, iter(range(1, 100))

    def break_last(self: torch.optim.AdamW, closure: None = None) -> Any:
        result = step(self, closure)
        if next(calls) == 5:
            with torch.no_grad():
                self.param_groups[0]["params"][0][0, 0] = float("nan")
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", break_last)
    kept = tmp_path / "checkpoints" / "step-000004"
    complaint = rf"no longer finite after step 5 \(.*weight\), .*the last good checkpoint is {kept}"
    with pytest.raises(UserError, match=complaint):
        run(settings(steps=5), new_model(), tmp_path)
    assert checkpoints(tmp_path) == ["step-000002", "step-000004"]
    assert not (tmp_path / "model").exists()


def test_what_an_epoch_leaves_over_is_said(
    new_model: NewModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings(steps=1), new_model(), tmp_path / "a")
    assert "4 of the 28 pairs of tiny are left over in every epoch" in capsys.readouterr().err
    run(settings(steps=1, batch_size=7), new_model(), tmp_path / "b")
    assert "left over" not in capsys.readouterr().err
    many = leftovers([9, 10, 11, 12, 13], list("abcde"), 8)
    assert [sentence.split(" are left")[0] for sentence in many] == [
        "5 of the 13 pairs of e", "4 of the 12 pairs of d", "3 of the 11 pairs of c",
        "so are 3 pairs of 2 other sources",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [-1, 12345678901234567890123])
def test_a_seed_is_a_number_of_63_bits(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        settings(seed=seed)


@pytest.mark.parametrize("damage", [b"null\n", b"\xff\xfe\n", b"{}\n", b'{"step": "one"}\n'])
def test_a_damaged_log_ends_no_run(damage: bytes, new_model: NewModel, tmp_path: Path) -> None:
    run(settings(steps=2), new_model(), tmp_path)
    file = tmp_path / "metrics.jsonl"
    first = file.read_bytes().splitlines(keepends=True)[0]
    file.write_bytes(first + damage)
    assert run(settings(steps=2), new_model(), tmp_path, resume=True).steps == 2
    assert file.read_bytes() == first
