"""A machine that others use is told from one that is free: readings are injected, nothing is timed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moembed.machine import cpu_kind
from moembed.runs import load
from moembed.runs.bench import Row, Suite
from moembed.runs.load import Load, Reading, look, used_by_others
from moembed.runs.record import Record

MACHINE = {"isa": ["amx"], "environment": {"OMP_NUM_THREADS": "2"}, "versions": {"torch": "2"}, "kind": "amx"}
BUSY = "These figures are not to be quoted, for the machine was busy: "


@pytest.mark.parametrize(
    ("end", "used"),
    [
        (Reading(10.0, 120.0, 20.0), 0.0),  # 20 s of two CPUs, all of them ours
        (Reading(10.0, 120.0, 10.0), 1.0),
        (Reading(10.0, 115.0, 0.0), 1.5),
        (Reading(10.0, 119.0, 20.0), 0.0),  # the two clocks tick apart
        (Reading(10.0, None, 20.0), None),
        (Reading(0.1, 100.2, 0.0), None),  # too short to tell
    ],
)
def test_what_others_used_is_what_was_busy_less_our_own(end: Reading, used: float | None) -> None:
    assert used_by_others(Reading(0.0, 100.0, 0.0), end) == used


def test_busy_time_is_that_of_our_cpus_without_idling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2}, raising=False)
    file = tmp_path / "stat"
    file.write_text(
        "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 4 1000 2000 8 16 32 64 128\ncpu1 7 7 7 7 7 7 7 7 7 7\n"
        "cpu2 100 0 0 5 0 0 0 0 0 0\ncpu20 7 7 7 7 7 7 7 7 7 7\nintr 5 5\n"
    )
    assert load._busy(file) == (1 + 2 + 4 + 8 + 16 + 32 + 100) / os.sysconf("SC_CLK_TCK")
    assert load._busy(tmp_path / "none") is None


def test_looking_reads_before_and_after_it_waits() -> None:
    readings = iter([Reading(0.0, 0.0, 0.0), Reading(1.0, 1.5, 0.25)])
    waited: list[float] = []
    found = look(lambda: next(readings), waited.append)
    assert found.before == 1.25
    assert waited == [load.WAIT]
    assert found.cpus >= 1


@pytest.mark.parametrize(
    ("found", "spreads", "reason"),
    [
        (Load(2, 9.0, 0.0, {"moe": 0.1, "train": None}), [0.02, 0.5, 0.03], None),
        (Load(2, 0.0, 1.0, {"moe": 0.0}), [], "other processes used, of 2 CPUs, 1.00 before the run."),
        (
            Load(2, 0.0, 0.4, {"moe": 0.0, "train": 0.9}),
            [],
            "other processes used, of 2 CPUs, 0.40 before the run, 0.90 during train.",
        ),
        (Load(2, 0.0, 0.0), [0.02, 0.2, 0.3], "the repeats of a contender typically lie 20% apart."),
        (Load(4, 3.0, None, {"moe": None}), [], "the load average before the run was 3.00 on 4 CPUs."),
        (Load(4, 1.0, None), [], None),
    ],
)
def test_a_busy_machine_is_told_in_one_sentence(
    found: Load, spreads: list[float], reason: str | None
) -> None:
    assert found.warning(spreads) == (None if reason is None else BUSY + reason)


@pytest.mark.parametrize("busy", [True, False])
def test_a_record_says_first_that_its_figures_are_not_to_be_quoted(busy: bool, tmp_path: Path) -> None:
    suite = Suite("tiny", "Is it fast?", lambda options: iter(()))
    found = Load(2, 0.0, 0.0, {"tiny": 1.7 if busy else 0.0})
    record = Record("2026-01-01", "moembed bench", MACHINE, {suite: [Row("q", "c", 1.0, "ms")]}, found)
    record.seconds["tiny"] = 12.3
    record.write(tmp_path / "new.md")
    lines = (tmp_path / "new.md").read_text().splitlines()
    warning = f"**{BUSY}other processes used, of 2 CPUs, 1.70 during tiny.**"
    assert (warning in lines) is busy
    assert (lines[2] == warning) is busy
    assert (record.as_dict()["warning"] is not None) is busy
    assert "| environment | OMP_NUM_THREADS=2 |" in lines
    assert (
        f"| load | other processes used 0.00 of 2 CPUs before the run, at most {1.7 * busy:.2f} "
        in "\n".join(lines)
    )
    assert "The suite took 12 s." in lines


@pytest.mark.parametrize(
    ("flags", "architecture", "kind"),
    [
        ("avx2 avx512f avx512_bf16 amx_bf16", "x86_64", "amx"),
        ("avx2 avx512f avx512_bf16", "x86_64", "avx512"),
        ("avx2 avx512f", "x86_64", "avx512-fp32"),
        ("avx2", "AMD64", "avx2"),
        ("sse4_2", "x86_64", "x86_64"),
        ("asimd", "aarch64", "arm"),
        ("", "arm64", "arm"),
    ],
)
def test_the_kind_of_a_cpu(flags: str, architecture: str, kind: str) -> None:
    assert cpu_kind(flags.split(), architecture) == kind
