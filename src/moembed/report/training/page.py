"""One HTML page about a training run: what the model reached, how it trained, where its tokens went.

The page holds everything it shows: no network, no script, light and dark. The same run gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path

import numpy as np

from moembed.compare import formatting
from moembed.compare.estimates import Difference, Estimate
from moembed.compare.verdict import REAL
from moembed.machine import RUN_FILE
from moembed.report import plots
from moembed.report.page import write_page
from moembed.report.pieces import Card, Entry, Row, Table, Tile, ends, figure_cell, made
from moembed.report.training import experts, scores, text
from moembed.report.training.reading import (
    Log,
    RunReport,
    number,
    read_log,
    read_made,
    read_report,
    series,
    smooth,
)

KNOWN = dict(zip(text.SYSTEMS, plots.LOOKS, strict=False))
CURVES = {
    "loss": "Loss",
    "held_out_loss": "Held-out loss",
    "learning_rate": "Learning rate",
    "pairs_per_second": "Throughput, pairs per second",
    "grad_norm": "Gradient norm",
    "temperature": "Temperature",
    "effective_negatives": "Negatives per query that count",
}


def write_report(run: Path, title: str) -> Path:
    """Write ``report.html`` of a run from its log and, where they exist, ``report.json`` and ``run.json``.

    Lines of the log that cannot be read (a killed run leaves a torn one) are left out and counted.

    Raises:
        UserError: no readable log, broken ``report.json``, matplotlib missing, page cannot be written.
    """
    log, skipped = read_log(run / "metrics.jsonl")
    report = read_report(run / "report.json")
    path = run / "report.html"
    write_page(
        path,
        "training",
        title=title,
        lead=text.summary(log, report),
        tiles=list(_tiles(log, report)),
        quality=list(_quality(report)),
        training=[*scores.cards(log), *_curves(log)],
        experts=list(experts.cards(log)),
        notes=[*report.notes, *text.warnings(log, skipped)],
        run=[
            *made(read_made(run / RUN_FILE)),
            *(
                Card(name.capitalize(), facts={key: _fact(value) for key, value in facts.items()})
                for name, facts in report.facts.items()
                if facts
            ),
        ],
    )
    return path


def _tiles(log: Log, report: RunReport) -> Iterator[Tile]:
    """The few figures people look for first."""
    _, speed = series(log, "pairs_per_second")
    active, total = (number(report.facts["model"].get(f"{kind}_parameters")) for kind in ("active", "total"))
    seconds = report.train_seconds
    if np.isnan(seconds):
        seconds = number(log[-1].get("elapsed"))
    if score := report.metrics.get("moe", {}).get("ndcg@10"):
        brackets = formatting.interval(score.low, score.high)
        yield Tile("nDCG@10", formatting.decimal(score.value), brackets)
    if active > 0:
        of = f"of {formatting.count(total)}" if total > 0 else ""
        yield Tile("Active parameters", formatting.count(active), of)
    if seconds >= 0:
        yield Tile("Training time", formatting.duration(seconds), f"{log[-1]['step']} steps")
    if len(speed):
        yield Tile("Throughput", formatting.count(float(np.median(speed))), "pairs per second, median")
    if report.queries > 0:
        corpus = f"over {formatting.count(report.documents)} documents" if report.documents > 0 else ""
        yield Tile("Test queries", formatting.count(report.queries), corpus)


def _quality(report: RunReport) -> Iterator[Card]:
    brackets = "In brackets: the 95 % bootstrap interval over the queries."
    if report.metrics:
        yield from _intervals("Metrics by system", report.metrics, brackets)
    if report.differences:
        about = (
            "First minus second on the same queries: above zero, the first is better. "
            f"▲ really better, ▼ really worse: p < {REAL} after Holm's correction. {brackets}"
        )
        yield from _intervals("Paired differences", report.differences, about, zero=True)


def _intervals(
    heading: str,
    columns: Mapping[str, Mapping[str, Estimate | Difference]],
    about: str,
    zero: bool = False,
) -> Iterator[Card]:
    """The same figures as a table and as a plot, one row per metric.

    The trained model, which results name last, is the first column: a narrow screen shows no more than two.
    """
    columns = dict(reversed(list(columns.items())))
    metrics = list(dict.fromkeys(metric for column in columns.values() for metric in column))
    labels = [formatting.metric_name(metric) for metric in metrics]
    names = [text.system_name(key) for key in columns]
    rows: list[Row] = [
        [label, *(figure_cell(column.get(metric)) for column in columns.values())]
        for label, metric in zip(labels, metrics, strict=True)
    ]
    yield Card(heading, about, tables=[Table(["", *names], {"": rows})])
    free = cycle(plots.LOOKS[len(text.SYSTEMS) :])
    looks = [KNOWN.get(key) or next(free) for key in columns]
    points = [[ends(column.get(metric)) for metric in metrics] for column in columns.values()]
    drawing = plots.dots(heading, labels, points, looks, zero=zero)
    yield Card(
        "Intervals of the differences" if zero else "Values and intervals",
        legend=list(map(Entry, looks, names)),
        drawing=drawing,
    )


def _curves(log: Log) -> Iterator[Card]:
    for key, heading in CURVES.items():
        step, value = series(log, key)
        if not len(value):
            continue
        label = f"{heading} from step {step[0]:.0f} to {step[-1]:.0f}"
        if key == "loss" and len(value) > 1:
            about = "Faint: as logged. Strong: smoothed over a twentieth of the run."
            yield Card(heading, about, drawing=plots.curve(label, step, value, smooth(value)))
        else:
            yield Card(heading, drawing=plots.curve(label, step, value))


def _fact(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
