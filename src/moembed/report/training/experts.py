"""Where the tokens went: the load of every expert over the run, at its end, and by kind of text."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np

from moembed.report import html, loads, words
from moembed.report.training import data, text
from moembed.report.training.data import Log

ROWS = 24  # of a heat map, at most
KINDS = {
    "role": "roles",
    "source": "source",
    "language": "languages",
}  # what texts differ in -> key of the log

Shape = list[tuple[int, int]]  # layer and number of experts of every router


def cards(log: Log) -> Iterator[str]:
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
    heat = loads.heat("Expert load by layer and step", step, load_LRE)
    yield html.card(
        "Load over the run", loads.SCALE + heat, "One row per expert. Blank: the fair share, 1/E."
    )
    about = f"Mean of the last {text.logged(last)}. Dashed: the fair share, 1/E."
    yield html.card("Load at the end", loads.bars("Expert load at the end of the run", late_LE), about)
    yield html.card("Routing at the end", _routing(routed[-last:], late_LE), wide=True)
    for kind in KINDS:
        yield from _by_kind(kind, routed, shape)


def _by_kind(kind: str, records: Log, shape: Shape) -> Iterator[str]:
    """Load by role, source or language of the texts, if the log knows more than one."""
    found: dict[str, list[Any]] = {}
    for record in records:
        for label, router in _labelled(record, KINDS[kind]):
            if _shape({"router": router}) == shape:
                found.setdefault(label, []).append(router)
    if len(found) < 2:
        return
    found = {label: routers[len(routers) // 2 :] for label, routers in found.items()}
    labels = sorted(sorted(found, key=lambda label: -len(found[label]))[:ROWS])
    load_LRE = {
        layer: np.array(
            [np.mean([router[place]["load"] for router in found[label]], axis=0) for label in labels]
        )
        for place, (layer, _) in enumerate(shape)
    }
    rows = []
    for row, label in enumerate(labels):
        stats = [entry for router in found[label] for entry in router]
        means = [np.mean([data.number(entry.get(key)) for entry in stats]) for key in ("entropy", "top_mass")]
        dead = sum(int((load_RE[row] == 0).sum()) for load_RE in load_LRE.values())
        rows.append([escape(label), *(words.decimal(float(mean)) for mean in means), str(dead)])
    table = html.table([kind.capitalize(), "Entropy, nats", "Chosen probability", "Dead experts"], rows)
    left_out = f" The {ROWS} most frequent of {len(found)}." if len(found) > ROWS else ""
    about = f"Mean of the second half of what was logged. One column per expert.{left_out}"
    drawing = loads.grid(f"Expert load by {kind}", labels, load_LRE)
    yield html.card(f"Load by {kind}", loads.SCALE + drawing + table, about)


def _labelled(record: dict[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    """Labels of the record's texts, and what the routers did with the texts of each."""
    value = record.get(key)
    if isinstance(value, str):
        yield value, record["router"]
    else:
        yield from data.mapping(value).items()


def _shape(record: dict[str, Any]) -> Shape:
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
        rows.append([str(layer), *shares, *(words.decimal(float(mean)) for mean in means)])
    head = ["Layer", "Lightest expert", "Heaviest expert", "Entropy, nats", "Chosen probability"]
    style = "alert" if any(dead.values()) else "muted"
    return f'<p class="{style}">{text.verdict(dead, len(records))}</p>{html.table(head, rows)}'
