"""What a report is made of: the log of a run and the figures of its evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from moembed.compare.estimates import Difference, Estimate
from moembed.types import UserError

T = TypeVar("T")
Log = list[dict[str, Any]]
MISSING = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class RunReport:
    """What ``report.json`` of a run tells; what it lacks, or holds in another form, is empty or NaN.

    Attributes:
        metrics: system -> metric.
        differences: pair "a-b" -> metric, ``a`` less ``b``.
        facts: settings, model and machine: names and values.
    """

    metrics: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Difference]]
    notes: list[str]
    facts: dict[str, dict[str, Any]]
    queries: float
    documents: float
    train_seconds: float


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


def read_report(path: Path) -> RunReport:
    """The evaluation of the run; empty where there is none yet.

    Raises:
        UserError: the file is no JSON object.
    """
    values: Any = {}
    if path.exists():
        try:
            values = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not readable JSON ({error}): evaluate the run again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, not an object: evaluate the run again")
    notes = values.get("notes")
    return RunReport(
        metrics=_table(values.get("metrics"), _estimate),
        differences=_table(values.get("differences"), _difference),
        notes=list(map(str, notes)) if isinstance(notes, list) else [],
        facts={name: mapping(values.get(name)) for name in ("settings", "model", "machine")},
        queries=number(values.get("queries")),
        documents=number(values.get("documents")),
        train_seconds=number(values.get("train_seconds")),
    )


def read_made(path: Path) -> dict[str, Any]:
    """When, on what and from where the run was made; empty where nobody wrote it down."""
    try:
        return mapping(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return {}


def _table(section: object, read: Callable[[dict[str, Any]], T | None]) -> dict[str, dict[str, T]]:
    """Every entry that holds a finite figure."""
    table = {}
    for name, row in mapping(section).items():
        cells = {metric: read(mapping(cell)) for metric, cell in mapping(row).items()}
        if known := {metric: cell for metric, cell in cells.items() if cell is not None}:
            table[name] = known
    return table


def _estimate(cell: dict[str, Any]) -> Estimate | None:
    found = Estimate(*(number(cell.get(key)) for key in ("value", "low", "high")))
    return found if math.isfinite(found.value) else None


def _difference(cell: dict[str, Any]) -> Difference | None:
    """Reports of older versions knew no correction: there, p is taken as it is."""
    corrected = cell | {"p_holm": cell.get("p_holm", cell.get("p_value"))}
    found = Difference(*(number(corrected.get(field.name)) for field in fields(Difference)))
    return found if math.isfinite(found.mean) else None


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
