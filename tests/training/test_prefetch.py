"""Work done ahead gives what work done in time gives, in order, and its errors where they belong."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from conftest import NewModel
from moembed.training.prefetch import prefetch
from training_runs import assert_same_weights, metrics, run, settings


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_step_gets_its_own(workers: int) -> None:
    def make(step: int) -> int:
        time.sleep(0.01 * (step % 3))  # later steps may be ready first
        return step * step

    with prefetch(make, workers, last=9) as get:
        assert [get(step) for step in range(4, 9)] == [step * step for step in range(4, 9)]


def test_the_next_step_is_made_while_the_caller_works() -> None:
    made = {step: threading.Event() for step in range(6)}
    with prefetch(lambda step: made[step].set(), workers=1, last=2) as get:
        get(0)
        assert made[1].wait(5)
        get(1)
    assert not made[2].is_set()  # nothing is made that nobody will ask for


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_at_its_step(workers: int) -> None:
    with prefetch(lambda step: 1 // (3 - step), workers) as get:
        assert [get(1), get(2)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            get(3)


def test_the_number_of_workers_changes_no_bit(new_model: NewModel, tmp_path: Path) -> None:
    """With dropout and jitter; and a run may go on with another number."""
    for workers in (0, 1, 3):
        run(settings(steps=4, workers=workers), new_model(), tmp_path / str(workers))
        assert metrics(tmp_path / str(workers)) == metrics(tmp_path / "0")
        assert_same_weights(tmp_path / str(workers) / "model", tmp_path / "0" / "model")
    run(settings(steps=4, workers=2), new_model(), tmp_path / "1", resume=True)
