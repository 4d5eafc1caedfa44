"""What a report is made of: the log of a run and the figures of its evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moembed.types import UserError


class Estimate(NamedTuple):
    """A figure with its bootstrap interval; NaN stands for what the run did not give."""

    value: float
    low: float
    high: float
    p_value: float


MISSING = Estimate(math.nan, math.nan, math.nan, math.nan)
Log = list[dict[str, Any]]
Table = dict[str, dict[str, Estimate]]  # system, or pair "a-b" -> metric -> estimate


def read_log(path: Path) -> tuple[Log, int]:
    """Records in order of step, and how many lines could not be read.

    A step that was logged again after a resume counts once: the later record stands.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the folder of a training run") from None
    steps: dict[int, dict[str, Any]] = {}
    skipped = 0
    for line in filter(bytes.strip, lines):
        try:
            record = json.loads(line)
            steps[int(record["step"])] = record
        except (ValueError, TypeError, KeyError, OverflowError):
            skipped += 1
    if not steps:
        raise UserError(f"{path} holds no readable step: train first, or give another run folder")
    return [steps[step] | {"step": step} for step in sorted(steps)], skipped


def read_report(path: Path) -> dict[str, Any]:
    """The evaluation of the run; empty where there is none yet."""
    if not path.exists():
        return {}
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}): evaluate the run again") from None
    if not isinstance(report, dict):
        raise UserError(f"{path} holds a {type(report).__name__}, not an object: evaluate the run again")
    return report


def estimates(section: object) -> Table:
    """Every entry of ``metrics`` or ``differences`` that holds a finite figure."""
    table = {}
    for name, row in mapping(section).items():
        cells = {metric: _estimate(mapping(cell)) for metric, cell in mapping(row).items()}
        if finite := {metric: cell for metric, cell in cells.items() if math.isfinite(cell.value)}:
            table[name] = finite
    return table


def _estimate(cell: dict[str, Any]) -> Estimate:
    value = cell.get("value", cell.get("mean"))
    return Estimate(
        number(value), number(cell.get("low")), number(cell.get("high")), number(cell.get("p_value"))
    )


def mapping(value: object) -> dict[str, Any]:
    """``value`` where it is a JSON object, an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def number(value: object) -> float:
    """``value`` as a float, NaN for what is not a finite number."""
    figure = float(value) if isinstance(value, (int, float)) else math.nan
    return figure if math.isfinite(figure) else math.nan


def series(log: Log, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps at which ``key`` was logged as a finite number, and these numbers."""
    step, value = np.array([(record["step"], number(record.get(key))) for record in log]).T
    return step[np.isfinite(value)], value[np.isfinite(value)]


def smooth(value: np.ndarray) -> np.ndarray:
    """Centred mean under a Hann window of a twentieth of the run; at the ends, of the part inside the run."""
    window = np.hanning(len(value) // 20 + 3)[1:-1]
    return np.convolve(value, window, "same") / np.convolve(np.ones_like(value), window, "same")
