"""Where the tokens went: the load of every expert over the run, at its end, and by kind of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from moembed.compare.formatting import decimal
from moembed.report import loads
from moembed.report.pieces import Card, Cell, Row, Table
from moembed.report.training import text
from moembed.report.training.reading import Log, mapping, number

ROWS = 24  # of a heat map, at most
KINDS = {
    "role": "roles",
    "source": "source",
    "language": "languages",
}  # what texts differ in -> key of the log
MEANS = {"entropy": "Entropy, nats", "top_mass": "Chosen probability"}  # key of the log -> head of a column

Shape = list[tuple[int, int]]  # layer and number of experts of every router


def cards(log: Log) -> Iterator[Card]:
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
    about = "One row per expert. Blank: the fair share, 1/E."
    yield Card("Load over the run", about, scale=True, drawing=heat)
    bars = loads.bars("Expert load at the end of the run", late_LE)
    about = f"Mean of the last {text.logged(last)}. Dashed: the fair share, 1/E."
    yield Card("Load at the end", about, drawing=bars)
    yield _routing(routed[-last:], late_LE, _distances(routed))
    for kind in KINDS:
        yield from _by_kind(kind, routed, shape)


def _by_kind(kind: str, records: Log, shape: Shape) -> Iterator[Card]:
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
    rows: list[Row] = []
    for row, label in enumerate(labels):
        means = _means([entry for router in found[label] for entry in router])
        dead = sum(int((load_RE[row] == 0).sum()) for load_RE in load_LRE.values())
        rows.append([label, *means, str(dead)])
    left_out = f" The {ROWS} most frequent of {len(found)}." if len(found) > ROWS else ""
    yield Card(
        f"Load by {kind}",
        f"Mean of the second half of what was logged. One column per expert.{left_out}",
        scale=True,
        drawing=loads.grid(f"Expert load by {kind}", labels, load_LRE),
        tables=[Table([kind.capitalize(), *MEANS.values(), "Dead experts"], {"": rows})],
    )


def _means(stats: list[Any]) -> list[str]:
    """``MEANS`` of the records of routers."""
    return [decimal(float(np.mean([number(entry.get(key)) for entry in stats]))) for key in MEANS]


def _labelled(record: dict[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    """Labels of the record's texts, and what the routers did with the texts of each."""
    value = record.get(key)
    if isinstance(value, str):
        yield value, record["router"]
    else:
        yield from mapping(value).items()


def _shape(record: dict[str, Any]) -> Shape:
    """Layer and number of experts of every router; empty where the step has no whole record of them."""
    try:
        return [(stats["layer"], len(stats["load"])) for stats in record["router"]]
    except (KeyError, TypeError):
        return []


def _distances(records: Log) -> dict[str, tuple[float, float]]:
    """By layer, how far the experts were apart when that was first and last looked at."""
    seen = [found for record in records if (found := mapping(record.get("expert_distance")))]
    return {
        layer: (number(seen[0].get(layer)), number(seen[-1].get(layer)))
        for layer in (seen[-1] if seen else {})
    }


def _routing(records: Log, load_LE: dict[int, np.ndarray], distances: dict[str, tuple[float, float]]) -> Card:
    """Dead experts in words, then one row of figures per layer."""
    dead = {layer: np.flatnonzero(load_E == 0).tolist() for layer, load_E in load_LE.items()}
    rows: list[Row] = []
    for place, (layer, load_E) in enumerate(load_LE.items()):
        extremes = ((load_E[expert], expert) for expert in (load_E.argmin(), load_E.argmax()))
        shares = [Cell(f"{100 * load:.1f} %", [f"expert\u00a0{expert}"]) for load, expert in extremes]
        apart = [" → ".join(map(decimal, distances[str(layer)]))] if str(layer) in distances else []
        rows.append([str(layer), *shares, *_means([record["router"][place] for record in records]), *apart])
    head = ["Layer", "Lightest expert", "Heaviest expert", *MEANS.values()]
    head += ["Distance between experts"] if distances else []
    return Card(
        "Routing at the end",
        wide=True,
        text=text.verdict(dead, len(records)),
        alert=any(dead.values()),
        tables=[Table(head, {"": rows})],
    )
