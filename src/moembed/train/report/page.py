"""One HTML page about a training run: what the model reached, how it trained, where its tokens went.

The page holds everything it shows: no network, no script, light and dark. The same run gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from moembed.train.report import data, plots, text
from moembed.train.report.data import MISSING, Estimate, Log, Table
from moembed.types import UserError

KNOWN_HUES = dict(zip(text.SYSTEMS, plots.HUES, strict=False))
CURVES = {
    "loss": "Loss",
    "learning_rate": "Learning rate",
    "pairs_per_second": "Throughput, pairs per second",
    "grad_norm": "Gradient norm",
}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # the page can load nothing
LOAD_SCALE = (
    '<div class="legend">no tokens<span class="scale" style="background:linear-gradient(90deg,'
    f'rgb{plots.UNDER},transparent,rgb{plots.OVER})"></span>2/E or more</div>'
)


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
    page = _page(
        title,
        f'<p class="lead">{escape(text.summary(log, metrics, differences))}</p>',
        _tiles(log, report, metrics),
        _section("Quality", _grid(_quality(metrics, differences, data.number(report.get("level", 0.95))))),
        _section("Training", _grid(_curves(log))),
        _section("Experts", _grid(_experts(log))),
        _section("Notes", _notes(sentences)),
        _section("Run", _grid(_facts(name, report.get(name)) for name in ("settings", "model", "machine"))),
    )
    path, temporary = run / "report.html", run / "report.html.tmp"
    try:
        temporary.write_text(page, encoding="utf-8", errors="replace")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    return path


def _tiles(log: Log, report: dict[str, Any], metrics: Table) -> str:
    """The few figures people look for first."""
    model, (_, speed) = data.mapping(report.get("model")), data.series(log, "pairs_per_second")
    active, total = (data.number(model.get(f"{kind}_parameters")) for kind in ("active", "total"))
    queries, documents = data.number(report.get("queries")), data.number(report.get("documents"))
    seconds = data.number(report.get("train_seconds", log[-1].get("elapsed")))
    tiles = []
    if score := metrics.get("moe", {}).get("ndcg@10"):
        tiles.append(("nDCG@10", text.decimal(score.value), text.interval(score.low, score.high)))
    if active > 0:
        tiles.append(
            ("Active parameters", text.count(active), f"of {text.count(total)}" if total > 0 else "")
        )
    if seconds >= 0:
        tiles.append(("Training time", text.duration(seconds), f"{log[-1]['step']} steps"))
    if len(speed):
        tiles.append(("Throughput", text.count(float(np.median(speed))), "pairs per second, median"))
    if queries > 0:
        corpus = f"over {text.count(documents)} documents" if documents > 0 else ""
        tiles.append(("Test queries", text.count(queries), corpus))
    cells = (
        f"<div><dt>{label}</dt><dd>{value}<small>{more}</small></dd></div>" for label, value, more in tiles
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>' if tiles else ""


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
    labels = [text.metric_name(metric) for metric in metrics]
    names = [escape(text.system_name(key)) for key in table]
    columns = [[column.get(metric, MISSING) for metric in metrics] for column in table.values()]
    rows = [
        [escape(label), *(_cell(cell, sign) for cell in row)]
        for label, row in zip(labels, zip(*columns, strict=True), strict=True)
    ]
    yield _card(heading, _table(["", *names], rows), about)
    free = cycle(plots.HUES[len(text.SYSTEMS) :])
    hues = [KNOWN_HUES.get(key) or next(free) for key in table]
    swatches = "".join(
        f'<span><i style="background:var(--{hue})"></i>{name}</span>'
        for name, hue in zip(names, hues, strict=True)
    )
    points = [[cell[:3] for cell in column] for column in columns]
    drawing = plots.dots(heading, labels, points, hues, zero=bool(sign))
    yield _card("Values and intervals", f'<div class="legend">{swatches}</div>{drawing}')


def _cell(cell: Estimate, sign: str) -> str:
    details = (text.interval(cell.low, cell.high), escape(text.p_value(cell.p_value)))
    small = "".join(f"<small>{detail}</small>" for detail in details if detail)
    return f"<b>{text.decimal(cell.value, sign)}</b>{small}"


def _curves(log: Log) -> Iterator[str]:
    for key, heading in CURVES.items():
        step, value = data.series(log, key)
        if not len(value):
            continue
        label = f"{heading} from step {step[0]:.0f} to {step[-1]:.0f}"
        if key == "loss" and len(value) > 1:
            about = "Faint: as logged. Strong: smoothed over a twentieth of the run."
            yield _card(heading, plots.curve(label, step, value, data.smooth(value)), about)
        else:
            yield _card(heading, plots.curve(label, step, value))


def _experts(log: Log) -> Iterator[str]:
    """Load of every expert over the run and at its end; nothing for a dense model."""
    routed = [record for record in log if _shape(record)]
    if not routed:
        return
    shape = _shape(routed[-1])
    routed = [record for record in routed if _shape(record) == shape]
    last = max(1, len(routed) // 10)
    step = np.array([record["step"] for record in routed])
    load_LRE = {
        layer: np.array([record["router"][place]["load"] for record in routed], dtype=float)
        for place, (layer, _) in enumerate(shape)
    }
    late_LE = {layer: load_RE[-last:].mean(axis=0) for layer, load_RE in load_LRE.items()}
    heat = plots.heat("Expert load by layer and step", step, load_LRE)
    yield _card("Load over the run", LOAD_SCALE + heat, "One row per expert. Blank: the fair share, 1/E.")
    about = f"Mean of the last {text.logged(last)}. Dashed: the fair share, 1/E."
    yield _card("Load at the end", plots.bars("Expert load at the end of the run", late_LE), about)
    yield _card("Routing at the end", _routing(routed[-last:], late_LE), wide=True)


def _shape(record: dict[str, Any]) -> list[tuple[int, int]]:
    """Layer and number of experts of every router; empty where the step has no whole record of them."""
    try:
        return [(stats["layer"], len(stats["load"])) for stats in record["router"]]
    except (KeyError, TypeError):
        return []


def _routing(records: Log, load_LE: dict[int, np.ndarray]) -> str:
    """Dead experts in words, then one row of figures per layer."""
    dead = {layer: np.flatnonzero(load_E == 0).tolist() for layer, load_E in load_LE.items()}
    rows = []
    for place, (layer, load_E) in enumerate(load_LE.items()):
        extremes = ((load_E[expert], expert) for expert in (load_E.argmin(), load_E.argmax()))
        shares = [f"{100 * load:.1f} %<small>expert&nbsp;{expert}</small>" for load, expert in extremes]
        stats = [record["router"][place] for record in records]
        means = [np.mean([data.number(entry.get(key)) for entry in stats]) for key in ("entropy", "top_mass")]
        rows.append([str(layer), *shares, *(text.decimal(float(mean)) for mean in means)])
    head = ["Layer", "Lightest expert", "Heaviest expert", "Entropy, nats", "Chosen probability"]
    style = "alert" if any(dead.values()) else "muted"
    return f'<p class="{style}">{text.verdict(dead, len(records))}</p>{_table(head, rows)}'


def _notes(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _facts(name: str, section: object) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escape(key)}</th><td>{_fact(value)}</td></tr>"
        for key, value in data.mapping(section).items()
    )
    return _card(name.capitalize(), f'<table class="facts"><tbody>{rows}</tbody></table>') if rows else ""


def _fact(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _card(heading: str, content: str, about: str = "", wide: bool = False) -> str:
    caption = f"<figcaption>{about}</figcaption>" if about else ""
    return f'<figure class="card{" wide" * wide}"><h3>{heading}</h3>{content}{caption}</figure>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    columns = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr><th scope=row>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>'


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{heading}</h2>{content}</section>" if content else ""


def _grid(cards: Iterable[str]) -> str:
    content = "".join(cards)
    return f'<div class="grid">{content}</div>' if content else ""


def _page(title: str, *parts: str) -> str:
    style = files("moembed.train.report").joinpath("report.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<p class="kicker">moembed training report</p>
<h1>{escape(title)}</h1>
{"".join(parts)}
</main>
</body>
</html>
"""
