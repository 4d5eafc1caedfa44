"""What a comparison says, in words: which differences are real, and where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moembed.report import words

REAL = 0.05  # a difference with a smaller p-value, after Holm's correction, is called one

Cell = Mapping[str, float]


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Of every system: whether it differs from the reference, and on which tasks, languages and lengths.

    Args:
        result: of ``compare``.
    """
    others = [name for name in result["systems"] if name != result["reference"]]
    return [sentence for other in others for sentence in _about(result, other)] + list(_seeds(result))


def _about(result: Mapping[str, Any], other: str) -> Iterator[str]:
    reference = result["reference"]
    for scope, unit, cell in _broadest(result, other):
        yield _verdict(other, reference, cell, unit, scope)
    sections = {
        "task": [(name, task["main"], task["differences"]) for name, task in result["tasks"].items()],
        "language": [(name, "score", row["differences"]) for name, row in result["languages"].items()],
        "length": [(name, "score", row["differences"]) for name, row in result["lengths"].items()],
    }
    for section, rows in sections.items():
        cells = {name: differences[other][label] for name, label, differences in rows if other in differences}
        if len(cells) > 1:
            yield f"{other} against {reference}, by {section}: {_where(cells)}."


def _broadest(result: Mapping[str, Any], other: str) -> Iterator[tuple[str, str, Cell]]:
    """Over all tasks, or else over every kind of them that both systems have: scope, unit and difference."""
    tasks, overall = result["tasks"], result["overall"]
    if other in overall["differences"]:
        mains = {task["main"] for task in tasks.values()}
        unit = words.metric_name(*mains) if len(mains) == 1 else "mean score"
        scope = f"over {len(tasks)} tasks" if len(tasks) > 1 else f"on {next(iter(tasks))}"
        yield scope, unit, overall["differences"][other]["score"]
        return
    for kind, row in result["kinds"].items():
        for metric, cell in row["differences"].get(other, {}).items():
            yield f"over {words.plural(row['tasks'], f'{kind} task')}", words.metric_name(metric), cell


def _verdict(a: str, b: str, cell: Cell, unit: str, scope: str) -> str:
    p_value = f"({words.p_value(cell['p_holm'])} after Holm)"
    mean, low, high = cell["mean"], cell["low"], cell["high"]
    if cell["p_holm"] >= REAL:
        figures = f"{words.decimal(mean, '+')} {unit} {words.interval(low, high)}"
        return f"No clear difference between {a} and {b} {scope}: {figures} {p_value}."
    if mean < 0:
        a, b, mean, low, high = b, a, -mean, -high, -low
    return f"{a} beats {b} by {words.decimal(mean)} {unit} {words.interval(low, high)} {scope} {p_value}."


def _where(cells: Mapping[str, Cell]) -> str:
    real = {name: cell["mean"] for name, cell in cells.items() if cell["p_holm"] < REAL}
    found = {
        "better on": [name for name, mean in real.items() if mean > 0],
        "worse on": [name for name, mean in real.items() if mean < 0],
        "no clear difference on": [name for name in cells if name not in real],
    }
    return "; ".join(f"{what} {words.listing(names)}" for what, names in found.items() if names)


def _seeds(result: Mapping[str, Any]) -> Iterator[str]:
    repeated = {name: runs for name, runs in result["seeds"].items() if runs > 1}
    single = [name for name in result["seeds"] if name not in repeated]
    if repeated:
        told = words.listing([f"{runs} runs of {name}" for name, runs in repeated.items()])
        rest = f"; taken as trained, with no luck of a seed: {words.listing(single)}" if single else ""
        yield f"The luck of the seed is in these figures, by {told}{rest}."
