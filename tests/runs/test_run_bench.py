"""The harness of `moembed bench`: who runs when, what is told, and what the command does with it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from conftest import Run
from moembed.machine import machine
from moembed.runs import bench, load
from moembed.runs.bench import AloneError, Options, Row, Timing, alone, interleave, ratio, speed_row, time_row
from moembed.runs.load import Load

SUITE = '''"""Is it fast?

Details.
"""
from moembed.runs.bench import Row

def rows(options):
    yield Row("a | b", "ours", 2.0, "ms", 0.1, 0.5, "theirs", "<= 1.0")
    yield Row("c", "theirs", note=f"{options.repeats} {options.quick} {options.threads}")
    yield Row("a | b", "theirs", 4.0, "ms")
'''


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_suite.py").write_text(SUITE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tiny_suite", raising=False)
    monkeypatch.setattr(bench, "suites", lambda: {"tiny": "tiny_suite"})
    monkeypatch.setattr(load, "look", lambda: Load(2, 0.0, 0.0))  # without the second that it takes


# ---- time --------------------------------------------------------------------------------------------------


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = interleave(contenders, repeats=3, warmup=2)
    assert "".join(calls) == "abc" * 5
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_timing_tells_its_median_and_spread() -> None:
    timing = Timing((4.0, 1.0, 2.0, 3.0, 100.0))
    assert timing.median == 3
    assert timing.spread == pytest.approx((4 - 2) / 3)
    assert Timing((2.0,)).spread is None


def test_the_ratio_is_taken_in_each_round() -> None:
    """A machine that slows down threefold half-way leaves it as it is; one bad round does too."""
    timings = {"a": Timing((2.0, 2.0, 6.0, 6.0, 60.0)), "b": Timing((1.0, 1.0, 3.0, 3.0, 3.0))}
    assert ratio(timings, "a", "b") == 2
    assert time_row("q", timings, "a", "b").ratio == 2
    assert speed_row("q", timings, "a", 12, "docs/s", "b").ratio == 0.5
    assert speed_row("q", timings, "b", 12, "docs/s").value == 4


# ---- rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "figure", "target", "met"),
    [
        (9.0, 1.1, "<= 1.10", True),
        (9.0, 1.11, "<= 1.10", False),
        (55.0, None, ">= 55", True),
        (54.9, None, ">= 55", False),
        (None, None, ">= 55", None),
        (9.0, 1.1, None, None),
    ],
)
def test_a_target_bounds_the_ratio_or_else_the_value(
    value: float | None, figure: float | None, target: str | None, met: bool | None
) -> None:
    row = Row("q", "c", value, ratio=figure, peer="p", target=target)
    assert row.met is met
    assert row.as_dict()["met"] is met


def test_what_a_reader_sees() -> None:
    row = Row("speed", "ours", 12345.6, "docs/s", 0.034, 2.5, "theirs", ">= 2", "a note")
    assert row.cells() == ["speed", "ours", "12,346 docs/s ± 3%", "2.5 × theirs", ">= 2, met", "a note"]
    assert Row("speed", "ours", note="not here").cells() == ["speed", "ours", "", "", "", "not here"]


# ---- a process of its own ----------------------------------------------------------------------------------


def touch(size: int) -> int:
    assert len(bytearray(size)) == size
    return os.getpid()


def test_a_function_alone_has_its_own_process_and_memory() -> None:
    held = bytearray(400 << 20)  # ours, which must not be counted as theirs
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    small, large = alone(touch, 1 << 10), alone(touch, 300 << 20)
    assert len({os.getpid(), small.result, large.result}) == 3
    assert large.peak_bytes - small.peak_bytes > 250 << 20
    assert bench.resident_memory() > len(held)


@pytest.mark.parametrize(
    ("function", "arguments", "complaint"),
    [
        (os.listdir, ("no/such/folder",), "FileNotFoundError"),
        (os._exit, (7,), "exit code 7"),
        (time.sleep, (60,), "within 1 s"),
    ],
)
def test_alone_tells_how_it_ended(function: object, arguments: tuple[object, ...], complaint: str) -> None:
    with pytest.raises(AloneError, match=complaint):
        alone(function, *arguments, timeout=1.0 if function is time.sleep else 60.0)  # type: ignore[arg-type]


# ---- suites ------------------------------------------------------------------------------------------------


def test_every_suite_asks_a_question() -> None:
    files = (bench.ROOT / "benchmarks").glob("*.py")
    assert set(bench.suites()) == {file.stem for file in files if "\ndef rows(" in file.read_text("utf-8")}
    for name in bench.suites():
        assert bench.load(name).question.endswith("?"), name


def test_the_models_are_what_they_are_called() -> None:
    bench.suites()
    from benchmarks import models

    from moembed.model.encoder import num_parameters

    assert num_parameters(models.PUBLISHED) == 475_292_928
    assert num_parameters(models.PUBLISHED, active=True) == 305_423_616
    blocks = 305_423_616 - (250_048 + 1) * 768  # active, without the tables of words and types
    assert models.flops(models.PUBLISHED, [1]) == pytest.approx(2 * blocks, rel=0.01)
    attention = models.flops(models.PUBLISHED, [100]) - 100 * models.flops(models.PUBLISHED, [1])
    assert attention == 12 * 4 * 768 * (100**2 - 100)


def test_without_a_gpu_the_rows_of_its_suite_say_so() -> None:
    rows = list(bench.load("gpu").rows(Options(1, True, "cpu", 1)))
    assert rows
    assert all(row.note == "no GPU in this run" and row.met is None and row.target for row in rows)


def test_the_machine() -> None:
    facts = machine()
    known = "cpu cores threads isa kind onednn environment memory_gib precision system gpu versions commit"
    assert list(facts) == known.split()
    assert facts["precision"] in ("float32", "bfloat16")
    assert facts["cpu"]
    assert facts["memory_gib"] > 0
    assert facts["versions"]["python"] == sys.version.split()[0]
    assert facts["versions"]["torch"]


# ---- the command -------------------------------------------------------------------------------------------


def test_the_command_prints_json(run: Run, suite: None) -> None:
    code, out, _ = run("bench", "tiny", "--json", "--quick", "--threads", "1")
    assert code == 0
    answer = json.loads(out)
    assert answer["command"] == "moembed bench tiny --quick --repeats 2 --threads 1"
    assert answer["machine"]["threads"] == 1
    assert answer["suites"]["tiny"]["question"] == "Is it fast?"
    first, second, _ = answer["suites"]["tiny"]["rows"]
    assert (first["ratio"], first["target"], first["met"]) == (0.5, "<= 1.0", True)
    assert second["note"] == "2 True 1"


def test_the_command_writes_a_record(run: Run, suite: None, tmp_path: Path) -> None:
    code, out, _ = run("bench", "--repeats", "3", "--out", str(tmp_path / "records" / "new.md"))
    assert code == 0
    assert "Is it fast?" in out
    record = (tmp_path / "records" / "new.md").read_text()
    assert "| command | moembed bench tiny --repeats 3 --threads" in record
    ours = "| a \\| b | ours | 2 ms ± 10% | 0.5 × theirs | <= 1.0, met |  |"
    assert f"{ours}\n| a \\| b | theirs | 4 ms |  |  |  |\n| c |" in record  # by question
    assert [file.name for file in (tmp_path / "records").iterdir()] == ["new.md"]


def test_what_was_measured_before_a_failure_is_kept(run: Run, suite: None, tmp_path: Path) -> None:
    (tmp_path / "tiny_suite.py").write_text(SUITE + "    raise KeyboardInterrupt\n")
    code, out, _ = run("bench", "tiny", "--out", str(tmp_path / "new.md"))
    assert code == 130
    assert "theirs" in out
    assert "theirs" in (tmp_path / "new.md").read_text()


def test_an_unknown_suite_is_refused(run: Run, suite: None) -> None:
    code, _, error = run("bench", "tiny", "moon")
    assert code == 2
    assert error == "error: there is no suite 'moon' (known: tiny)\n"
