"""One HTML page about an evaluation: does the last model beat the first, by how much, and where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from moembed.page import html, plots, words

BRACKETS = "In brackets: 95 % bootstrap interval over the queries."
LAST, BASELINE, OTHERS = "c1", "c4", ("c2", "c3", "c5", "c6")  # hues of the last model, BM25, the rest


class Gain(NamedTuple):
    """What the last model has more than the first."""

    value: float
    low: float
    high: float
    p_value: float


def write_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page of ``result``; the same result gives the same bytes.

    Args:
        result: ``tasks`` maps names to queries, documents, notes, metrics and differences, ``overall`` holds
            metrics and differences of the mean over tasks; both as `moembed.evaluate.compare` gives them,
            models in the order of the evaluation, differences to the last one.

    Raises:
        UserError: matplotlib is missing, or the page cannot be written.
    """
    tasks, overall = result["tasks"], result["overall"]
    models = list(overall["metrics"])
    metrics = list(overall["metrics"][models[0]])
    title = f"{models[-1]} against {models[0]}" if len(models) > 1 else models[0]
    rows = {**tasks, "mean over tasks": overall} if len(tasks) > 1 else dict(tasks)
    remarks = [f"{name}: {note}" for name, task in tasks.items() for note in task["notes"]]
    page = html.document(
        title,
        "moembed evaluation",
        f'<p class="lead">{escape(summary(result))}</p>',
        html.tiles(_tiles(result)),
        *(html.section(words.metric_name(m), html.grid(_cards(m, rows, models))) for m in metrics),
        html.section("Notes", html.notes(remarks)),
    )
    html.write(path, page)


def summary(result: Mapping[str, Any]) -> str:
    """Whether the last model beats the first, in one sentence, by the first metric."""
    overall, tasks = result["overall"], result["tasks"]
    models = list(overall["metrics"])
    metric = next(iter(overall["metrics"][models[0]]))
    label = words.metric_name(metric)
    queries = sum(task["queries"] for task in tasks.values())
    scope = f"over {queries:,} queries of {len(tasks)} task{'s' * (len(tasks) > 1)}"
    if len(models) < 2:
        cell = overall["metrics"][models[0]][metric]
        brackets = words.interval(cell["low"], cell["high"])
        return f"{models[0]} reaches {words.decimal(cell['value'])} {label} {brackets} {scope}."
    first, last = models[0], models[-1]
    gain = _gain(overall, models, metric)
    brackets = words.interval(gain.low, gain.high)
    if gain.low > 0:
        return f"{last} beats {first} by {words.decimal(gain.value, '+')} {label} {brackets} {scope}."
    if gain.high < 0:
        brackets = words.interval(-gain.high, -gain.low)
        return f"{last} is worse than {first} by {words.decimal(-gain.value)} {label} {brackets} {scope}."
    return (
        f"{last} and {first} show no clear difference {scope}: {words.decimal(gain.value, '+')} {label} "
        f"{brackets}, which includes zero."
    )


def _tiles(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    overall, tasks = result["overall"], result["tasks"]
    models = list(overall["metrics"])
    metric = next(iter(overall["metrics"][models[0]]))
    label = words.metric_name(metric)
    for model in dict.fromkeys((models[0], models[-1])):
        cell = overall["metrics"][model][metric]
        brackets = words.interval(cell["low"], cell["high"])
        yield f"{label} of {escape(model)}", words.decimal(cell["value"]), brackets
    if len(models) > 1:
        gain = _gain(overall, models, metric)
        yield "Difference", words.decimal(gain.value, "+"), words.interval(gain.low, gain.high)
    queries, documents = (sum(task[what] for task in tasks.values()) for what in ("queries", "documents"))
    yield "Queries", f"{queries:,}", f"over {documents:,} documents"


def _cards(metric: str, rows: Mapping[str, Any], models: list[str]) -> Iterator[str]:
    """One metric: every model on every task as a table and as bars, and what the last gained on the first."""
    several = len(models) > 1
    cells = [
        [_title(name, row), *(_cell(row["metrics"][model][metric]) for model in models)]
        + ([_difference(_gain(row, models, metric))] if several else [])
        for name, row in rows.items()
    ]
    head = ["", *map(escape, models), *["last − first"] * several]
    yield html.card("Every model on every task", html.table(head, cells), BRACKETS, wide=True)
    hues = _hues(models)
    scores = [[_ends(row["metrics"][model][metric]) for row in rows.values()] for model in models]
    label = words.metric_name(metric)
    drawing = plots.levels(f"{label} by task", list(rows), scores, hues)
    yield html.card("Scores", html.legend(map(escape, models), hues) + drawing, "Lines: the intervals.")
    if several:
        gains = [[_gain(row, models, metric)[:3] for row in rows.values()]]
        drawing = plots.dots(f"{label} gained by task", list(rows), gains, [LAST], zero=True)
        names = f"{escape(models[-1])} minus {escape(models[0])}"
        about = "On the same queries; right of zero, the last model is better."
        yield html.card(names, drawing, about)


def _hues(models: list[str]) -> list[str]:
    free = cycle(OTHERS)
    hues = [BASELINE if model == "bm25" else next(free) for model in models]
    return [*hues[:-1], LAST]


def _title(name: str, row: Mapping[str, Any]) -> str:
    counts = f"{row['queries']:,} queries, {row['documents']:,} documents" if "queries" in row else ""
    return escape(name) + (f"<small>{counts}</small>" if counts else "")


def _cell(cell: Mapping[str, float]) -> str:
    return f"<b>{words.decimal(cell['value'])}</b><small>{words.interval(cell['low'], cell['high'])}</small>"


def _difference(gain: Gain) -> str:
    brackets, p = words.interval(gain.low, gain.high), escape(words.p_value(gain.p_value))
    return f"<b>{words.decimal(gain.value, '+')}</b><small>{brackets}</small><small>{p}</small>"


def _gain(row: Mapping[str, Any], models: list[str], metric: str) -> Gain:
    """The result has first minus last; subtracted from 0 and not negated, which would make zero −0."""
    cell = row["differences"][f"{models[0]}-{models[-1]}"][metric]
    return Gain(0 - cell["mean"], 0 - cell["high"], 0 - cell["low"], cell["p_value"])


def _ends(cell: Mapping[str, float]) -> tuple[float, ...]:
    return cell["value"], cell["low"], cell["high"]
