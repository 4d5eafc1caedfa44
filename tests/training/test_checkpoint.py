"""A run resumes bit for bit, survives kills and full disks, and says what is wrong with its checkpoints."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError

from conftest import NewModel
from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.folder import write as folder_module
from moembed.folder.read import read_folder
from moembed.training import checkpoint
from moembed.training.contrastive.task import Mixture
from moembed.training.contrastive.train import train_contrastive
from moembed.types import Pair, UserError
from moembed.weights.selection_bias import add_selection_bias
from training_runs import PAIRS, assert_same_weights, checkpoints, interrupt_at, metrics, run, settings

SCRIPT = """
import itertools, os, pathlib, signal, sys
from moembed import embedder
from moembed.folder import write as folder
from moembed.training.contrastive import gradcache
from training_runs import run, settings

{0}
model = embedder.Embedder.from_pretrained("base", device="cpu")
run(settings(**{1}), model, pathlib.Path("cut"))
"""


def killed(tmp_path: Path, trap: str, **changes: Any) -> None:
    """Train in another process, which ``trap`` kills."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(textwrap.dedent(trap), changes)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path])},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


# ---- resuming ------------------------------------------------------------------------------------


class Crash(BaseException):
    """Nothing in the loop handles it."""


def crash() -> None:
    raise Crash


@pytest.mark.parametrize("call", [4, 5, 6])
def test_resumed_equals_uninterrupted_bit_for_bit(
    call: int,
    new_model: NewModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A crash one or no step after a checkpoint; lines beyond the checkpoint are written again."""
    whole = run(settings(), new_model(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(call, patch, crash)
        with pytest.raises(Crash):
            run(settings(), new_model(), tmp_path / "cut")
    assert len(metrics(tmp_path / "cut")) == call - 1
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')  # a line torn by the crash
    resumed = run(settings(), new_model(), tmp_path / "cut", resume=True)
    assert (resumed.steps, resumed.pairs, resumed.truncated) == (whole.steps, whole.pairs, whole.truncated)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    for place in ("model", "checkpoints/step-000006"):
        assert_same_weights(tmp_path / "cut" / place, tmp_path / "whole" / place)


def test_a_finished_run_resumes_to_what_it_was(new_model: NewModel, tmp_path: Path) -> None:
    run(settings(), new_model(), tmp_path)
    before, lines = read_folder(tmp_path / "model").state, metrics(tmp_path)
    assert run(settings(), new_model(), tmp_path, resume=True).steps == 6
    assert metrics(tmp_path) == lines
    assert all(torch.equal(tensor, before[n]) for n, tensor in read_folder(tmp_path / "model").state.items())


def test_the_newest_checkpoints_are_kept_and_load_as_models(new_model: NewModel, tmp_path: Path) -> None:
    model = new_model()
    run(settings(steps=5, save_every=1, keep_checkpoints=3), model, tmp_path)
    assert checkpoints(tmp_path) == ["step-000003", "step-000004", "step-000005"]
    newest = Embedder.from_pretrained(tmp_path / "checkpoints" / "step-000005", device="cpu")
    assert newest.space() == model.space()


def test_checkpoints_are_ordered_as_numbers(tmp_path: Path) -> None:
    for name in ("step-999999", "step-1000000", "step-000500", ".step-1000001.new", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoints" / "step-1000000"
    assert checkpoint.latest(tmp_path / "nowhere") is None


EVERYTHING = {  # that outlives a step: a schedule, a temperature, running counts, biases, the best model
    "loss": {
        "learn_temperature": True,
        "balance_window": 3,
        "bias_rate": 0.01,
        "matryoshka": {"dims": [16, 8]},
    },
    "held_out": 0.1,
    "evaluate_every": 2,
    "save_every": 3,
    "steps": 10,
}


def test_a_run_killed_at_a_random_step_goes_on_bit_for_bit(new_model: NewModel, tmp_path: Path) -> None:
    parts = new_model().parts()
    parts.spec, parts.state = add_selection_bias(parts.spec, parts.state)
    Embedder(parts).save_pretrained(tmp_path / "base")
    model = lambda: Embedder.from_pretrained(tmp_path / "base", device="cpu")  # noqa: E731
    run(settings(**EVERYTHING), model(), tmp_path / "whole")
    step = random.Random(os.getpid()).randint(4, 10)
    trap = f"""
        backward, calls = gradcache.backward, itertools.count(1)
        def last(*arguments):
            if next(calls) == {step}:
                os.kill(os.getpid(), signal.SIGKILL)
            return backward(*arguments)
        gradcache.backward = last
    """
    killed(tmp_path, trap, **EVERYTHING)
    assert len(metrics(tmp_path / "cut")) == step - 1, step
    run(settings(**EVERYTHING), model(), tmp_path / "cut", resume=True)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert [line["step"] for line in metrics(tmp_path / "cut")] == list(range(1, 11))
    assert len({line["temperature"] for line in metrics(tmp_path / "cut")}) == 10
    for place in ("model", "checkpoints/best"):
        assert_same_weights(tmp_path / "cut" / place, tmp_path / "whole" / place)


# ---- a hostile machine ---------------------------------------------------------------------------


def test_a_kill_in_the_middle_of_a_checkpoint_leaves_the_one_before(
    new_model: NewModel, tmp_path: Path
) -> None:
    """Another process kills itself when half of the second checkpoint's weights are on the disk."""
    base = tmp_path / "base"
    new_model().save_pretrained(base)
    run(settings(), Embedder.from_pretrained(base, device="cpu"), tmp_path / "whole")
    trap = """
        save_file, calls = folder.save_file, itertools.count()
        def half(tensors, path, **options):
            save_file(tensors, path, **options)
            if next(calls) == 1:
                path.write_bytes(path.read_bytes()[:5000])
                os.kill(os.getpid(), signal.SIGKILL)
        folder.save_file = half
    """
    killed(tmp_path, trap)
    assert checkpoints(tmp_path / "cut") == [".step-000004.new", "step-000002"]
    assert checkpoint.latest(tmp_path / "cut") == tmp_path / "cut" / "checkpoints" / "step-000002"
    run(settings(), Embedder.from_pretrained(base, device="cpu"), tmp_path / "cut", resume=True)
    assert checkpoints(tmp_path / "cut") == ["step-000004", "step-000006"]
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert_same_weights(tmp_path / "cut" / "model", tmp_path / "whole" / "model")


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (folder_module, "save_file", OSError(errno.ENOSPC, "No space left on device")),
        (folder_module, "save_file", SafetensorError("I/O error: No space left on device")),
        (torch, "save", OSError(errno.ENOSPC, "No space left on device")),
        (torch, "save", RuntimeError("unexpected pos: No space left on device")),
    ],
)
def test_a_full_disk_is_a_clear_sentence_and_the_old_checkpoint_survives(
    place: Any,
    name: str,
    error: Exception,
    new_model: NewModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(settings(), new_model(), tmp_path / "whole")
    write, calls = getattr(place, name), iter(range(99))

    def fills_up(*arguments: Any, **options: Any) -> None:
        if next(calls) == 1:
            raise error
        write(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, fills_up)
        complaint = r"step 4 was not saved: .*No space left on device.*; .*step-000002 is intact"
        with pytest.raises(UserError, match=complaint):
            run(settings(), new_model(), tmp_path / "cut")
    assert checkpoints(tmp_path / "cut") == ["step-000002"]
    run(settings(), new_model(), tmp_path / "cut", resume=True)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert_same_weights(tmp_path / "cut" / "model", tmp_path / "whole" / "model")


def test_a_disk_full_from_the_start_says_that_nothing_was_saved(
    new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"step 2 was not saved: .*; nothing was saved before"):
        run(settings(), new_model(), tmp_path)


# ---- checkpoints that do not fit -----------------------------------------------------------------


def test_nothing_to_resume_is_refused(new_model: NewModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoint to resume from"):
        run(settings(), new_model(), tmp_path / "nowhere", resume=True)


def test_a_checkpoint_of_a_version_that_knew_fewer_options_goes_on(
    new_model: NewModel, tmp_path: Path
) -> None:
    run(settings(), new_model(), tmp_path)
    saved = tmp_path / "checkpoints" / "step-000006" / "train"
    recipe = yaml.safe_load((saved / "recipe.yaml").read_text())
    assert recipe.pop("evaluate") is None
    (saved / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["train/recipe.yaml"] = checkpoint._digest(saved / "recipe.yaml")
    (saved / "manifest.json").write_text(json.dumps(manifest))
    assert run(settings(), new_model(), tmp_path, resume=True).steps == 6


def test_another_recipe_is_refused_with_what_differs(new_model: NewModel, tmp_path: Path) -> None:
    run(settings(), new_model(), tmp_path)
    lines = metrics(tmp_path)
    with pytest.raises(UserError, match="step-000006 was made with another recipe") as refusal:
        run(settings(seed=9, loss={"z": 0.5}, keep_checkpoints=7), new_model(), tmp_path, resume=True)
    _, *changes = str(refusal.value).splitlines()
    assert changes == [
        "--- the checkpoint", "+++ this recipe", "-seed: 0", "+seed: 9", "-loss.z: 0.0", "+loss.z: 0.5"
    ]  # fmt: skip
    with pytest.raises(UserError, match="step-000006 is there already; resume that run"):
        run(settings(), new_model(), tmp_path)
    assert metrics(tmp_path) == lines


def test_what_does_not_touch_the_result_may_differ(new_model: NewModel, tmp_path: Path) -> None:
    run(settings(), new_model(), tmp_path)
    changes = {"workers": 0, "save_every": 9, "keep_checkpoints": 1}
    assert run(settings(**changes), new_model(), tmp_path, resume=True).steps == 6


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train/optimiser.pt", b""),
        ("train/optimiser.pt", b"\x80\x02no pickle"),
        ("train/optimiser.pt", None),
        ("train/state.json", b"{"),
        ("train/state.json", b'{"step": 6}'),
        ("train/state.json", None),
        ("train/recipe.yaml", None),
        ("model.safetensors", b"short"),
        ("config.json", None),
    ],
)
def test_a_damaged_checkpoint_is_named(
    name: str, content: bytes | None, new_model: NewModel, tmp_path: Path
) -> None:
    run(settings(steps=2), new_model(), tmp_path)
    file = tmp_path / "checkpoints" / "step-000002" / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"step-000002 is damaged \(.*\), and so is every checkpoint before"):
        run(settings(steps=2), new_model(), tmp_path, resume=True)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(
    new_model: NewModel, tmp_path: Path
) -> None:
    """One bit is wrong, in a place that every format would read without a word."""
    run(settings(), new_model(), tmp_path / "whole")
    run(settings(), new_model(), tmp_path / "cut")
    file = tmp_path / "cut" / "checkpoints" / "step-000006" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.warns(
        UserWarning, match=r"step-000006 is damaged \(model.safetensors changed\).*step-000004"
    ):
        run(settings(), new_model(), tmp_path / "cut", resume=True)
    assert checkpoints(tmp_path / "cut") == ["step-000004", "step-000006", "step-000006.damaged"]
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert_same_weights(tmp_path / "cut" / "model", tmp_path / "whole" / "model")


# ---- other data ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "now"),
    [
        ([Pair("another question", "another answer"), *PAIRS[1:]], "28 rows"),
        ([*PAIRS, Pair("a new question", "a new answer")], "29 rows"),
        ([*PAIRS[1:], PAIRS[0]], "28 rows"),
    ],
)
def test_other_data_is_refused(pairs: list[Pair], now: str, new_model: NewModel, tmp_path: Path) -> None:
    run(settings(), new_model(), tmp_path)
    lines = metrics(tmp_path)
    mixture = Mixture([Source.from_pairs("tiny", pairs)])
    complaint = rf"the data changed since step 6: tiny had 28 rows of .* and now has {now} of .*; put"
    with pytest.raises(UserError, match=complaint):
        train_contrastive(settings(), new_model(), mixture, tmp_path, resume=True)
    assert metrics(tmp_path) == lines


def as_before_this_version(saved: Path) -> None:
    """Write a checkpoint again as earlier versions did: no word of the data, another name for an alarm."""
    state = json.loads((saved / "train" / "state.json").read_text())
    assert state.pop("data")
    (saved / "train" / "state.json").write_text(json.dumps(state))
    tensors = torch.load(saved / "train" / "optimiser.pt", weights_only=True)
    tensors["extras"]["starving"] = tensors["extras"].pop("dead_experts")
    del tensors["extras"]["routing"]
    torch.save(tensors, saved / "train" / "optimiser.pt")
    manifest = json.loads((saved / "train" / "manifest.json").read_text())
    for name in ("train/state.json", "train/optimiser.pt"):
        manifest[name] = checkpoint._digest(saved / name)
    (saved / "train" / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_of_an_older_version_goes_on_bit_for_bit_with_a_note(
    new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(settings(), new_model(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(5, patch, crash)
        with pytest.raises(Crash):
            run(settings(), new_model(), tmp_path / "cut")
    as_before_this_version(tmp_path / "cut" / "checkpoints" / "step-000004")
    with pytest.warns(UserWarning, match="does not say what data it was trained on"):
        assert run(settings(), new_model(), tmp_path / "cut", resume=True).steps == 6
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert_same_weights(tmp_path / "cut" / "model", tmp_path / "whole" / "model")


def test_a_run_that_cut_texts_elsewhere_is_refused(new_model: NewModel, tmp_path: Path) -> None:
    run(settings(), new_model(), tmp_path)
    model = new_model()
    model.tokenizer.max_length = 20
    with pytest.raises(UserError, match="cut texts at 32 tokens where this run would read 20"):
        run(settings(), model, tmp_path, resume=True)
