"""One HTML page about a training run: what the model reached, how it trained, where its tokens went.

The page holds everything it shows: no network, no script, light and dark. The same run gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from moembed.report import html, plots, words
from moembed.report.training import data, experts, scores, text
from moembed.report.training.data import MISSING, Estimate, Log, Table

KNOWN = dict(zip(text.SYSTEMS, plots.LOOKS, strict=False))
CURVES = {
    "loss": "Loss",
    "held_out_loss": "Held-out loss",
    "learning_rate": "Learning rate",
    "pairs_per_second": "Throughput, pairs per second",
    "grad_norm": "Gradient norm",
    "temperature": "Temperature",
}


def write_report(run: Path, title: str) -> Path:
    """Write ``run/report.html`` from ``run/metrics.jsonl`` and, where it exists, ``run/report.json``.

    Lines of the log that cannot be read (a killed run leaves a torn one) are left out and counted.

    Raises:
        UserError: no readable log, broken ``report.json``, matplotlib missing, page cannot be written.
    """
    log, skipped = data.read_log(run / "metrics.jsonl")
    report = data.read_report(run / "report.json")
    metrics, differences = data.estimates(report.get("metrics")), data.estimates(report.get("differences"))
    notes = report.get("notes")
    sentences = [*(map(str, notes) if isinstance(notes, list) else ()), *text.warnings(log, skipped)]
    page = html.document(
        title,
        "moembed training report",
        f'<p class="lead">{escape(text.summary(log, metrics, differences))}</p>',
        _tiles(log, report, metrics),
        html.section(
            "Quality", html.grid(_quality(metrics, differences, data.number(report.get("level", 0.95))))
        ),
        html.section("Training", html.grid([*scores.cards(log), *_curves(log)])),
        html.section("Experts", html.grid(experts.cards(log))),
        html.section("Notes", html.notes(sentences)),
        html.section(
            "Run", html.grid(_facts(name, report.get(name)) for name in ("settings", "model", "machine"))
        ),
    )
    path = run / "report.html"
    html.write(path, page)
    return path


def _tiles(log: Log, report: dict[str, Any], metrics: Table) -> str:
    """The few figures people look for first."""
    model, (_, speed) = data.mapping(report.get("model")), data.series(log, "pairs_per_second")
    active, total = (data.number(model.get(f"{kind}_parameters")) for kind in ("active", "total"))
    queries, documents = data.number(report.get("queries")), data.number(report.get("documents"))
    seconds = data.number(report.get("train_seconds", log[-1].get("elapsed")))
    tiles = []
    if score := metrics.get("moe", {}).get("ndcg@10"):
        tiles.append(("nDCG@10", words.decimal(score.value), words.interval(score.low, score.high)))
    if active > 0:
        tiles.append(
            ("Active parameters", words.count(active), f"of {words.count(total)}" if total > 0 else "")
        )
    if seconds >= 0:
        tiles.append(("Training time", words.duration(seconds), f"{log[-1]['step']} steps"))
    if len(speed):
        tiles.append(("Throughput", words.count(float(np.median(speed))), "pairs per second, median"))
    if queries > 0:
        corpus = f"over {words.count(documents)} documents" if documents > 0 else ""
        tiles.append(("Test queries", words.count(queries), corpus))
    return html.tiles(tiles)


def _quality(metrics: Table, differences: Table, level: float) -> Iterator[str]:
    brackets = f"In brackets: {100 * level:.0f} % bootstrap interval over the queries."
    if metrics:
        yield from _compare("Metrics by system", metrics, brackets)
    if differences:
        about = f"First minus second on the same queries: above zero, the first is better. {brackets}"
        yield from _compare("Paired differences", differences, about, sign="+")


def _compare(heading: str, table: Table, about: str, sign: str = "") -> Iterator[str]:
    """The same estimates as a table and as a plot, one row per metric."""
    metrics = list(dict.fromkeys(metric for column in table.values() for metric in column))
    labels = [words.metric_name(metric) for metric in metrics]
    names = [escape(text.system_name(key)) for key in table]
    columns = [[column.get(metric, MISSING) for metric in metrics] for column in table.values()]
    rows = [
        [escape(label), *(_cell(cell, sign) for cell in row)]
        for label, row in zip(labels, zip(*columns, strict=True), strict=True)
    ]
    yield html.card(heading, html.table(["", *names], rows), about)
    free = cycle(plots.LOOKS[len(text.SYSTEMS) :])
    looks = [KNOWN.get(key) or next(free) for key in table]
    points = [[cell[:3] for cell in column] for column in columns]
    drawing = plots.dots(heading, labels, points, looks, zero=bool(sign))
    yield html.card("Values and intervals", html.legend(names, looks) + drawing)


def _cell(cell: Estimate, sign: str) -> str:
    details = (words.interval(cell.low, cell.high), escape(words.p_value(cell.p_value)))
    small = "".join(f"<small>{detail}</small>" for detail in details if detail)
    return f"<b>{words.decimal(cell.value, sign)}</b>{small}"


def _curves(log: Log) -> Iterator[str]:
    for key, heading in CURVES.items():
        step, value = data.series(log, key)
        if not len(value):
            continue
        label = f"{heading} from step {step[0]:.0f} to {step[-1]:.0f}"
        if key == "loss" and len(value) > 1:
            about = "Faint: as logged. Strong: smoothed over a twentieth of the run."
            yield html.card(heading, plots.curve(label, step, value, data.smooth(value)), about)
        else:
            yield html.card(heading, plots.curve(label, step, value))


def _facts(name: str, section: object) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escape(key)}</th><td>{_fact(value)}</td></tr>"
        for key, value in data.mapping(section).items()
    )
    return html.card(name.capitalize(), f'<table class="facts"><tbody>{rows}</tbody></table>') if rows else ""


def _fact(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
