"""The tables of the page: scores, differences to the reference, every metric, and what the systems cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from moembed.compare import formatting
from moembed.compare.estimates import Estimate
from moembed.compare.results import Comparison
from moembed.evaluation.result import EvaluatedTask, SizeScore
from moembed.evaluation.won_lost import WonLost
from moembed.report.comparison.rows import Row, Rows, row
from moembed.report.pieces import MISSING, Cell, Table, difference_cell, score_cell

FIGURES = "The figures"
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "texts_per_second": ("Texts per second", formatting.count),
    "peak_memory_bytes": ("Peak memory", formatting.size),
    "active_parameters": ("Active parameters", formatting.count),
    "parameters": ("All parameters", formatting.count),
    "bytes_per_vector": ("Bytes per vector", "{:,.0f}".format),
    "seconds": ("This evaluation", formatting.duration),
}


def scores(rows: Rows) -> Table:
    """Tasks x systems by the main metric of each task; the highest score of a row is marked."""
    groups = {
        heading: [[_title(one), *_scores(one.scores, rows.columns)] for one in some]
        for heading, some in rows.groups()
    }
    return Table(["", *_heads(rows)], groups)


def differences(rows: Rows) -> Table:
    """Tasks x other systems: how far each is from the reference."""
    groups = {
        heading: [
            [_title(one), *(difference_cell(one.gaps.get(other)) for other in rows.contenders)]
            for one in some
        ]
        for heading, some in rows.groups()
    }
    return Table(["", *(Cell(other, [f"− {rows.reference}"]) for other in rows.contenders)], groups)


def figures(some: Sequence[Row], rows: Rows) -> Table:
    """What a plot of ``some`` rows shows, to read off."""
    cells = [[_title(one), *_scores(one.scores, rows.columns)] for one in some]
    return Table(["", *_heads(rows)], {"": cells}, FIGURES)


def metrics(result: Comparison, rows: Rows) -> list[Table]:
    """Every metric of every task; nothing where no task has more than its main one."""
    groups = {}
    for name, task in result.tasks.items():
        found = dict.fromkeys(metric for cells in task.metrics.values() for metric in cells)
        if len(found) > 1:
            lines = [row(formatting.metric_name(metric), metric, task) for metric in found]
            groups[name] = [
                [_title(line), *(score_cell(line.scores.get(system)) for system in rows.columns)]
                for line in lines
            ]
    return [Table(["", *_heads(rows)], groups, "Every metric")] if groups else []


def costs(cost: Mapping[str, Mapping[str, float]]) -> Table:
    """Systems x what is known of their costs."""
    known = [key for key in COSTS if any(key in figures for figures in cost.values())]
    lines = [
        [system, *(COSTS[key][1](figures[key]) if key in figures else MISSING for key in known)]
        for system, figures in cost.items()
    ]
    return Table(["", *(COSTS[key][0] for key in known)], {"": lines})


def sizes(sizes: Mapping[str, Sequence[SizeScore]]) -> Table:
    """Dimensions x codecs of every system, to read off."""
    codecs = list(dict.fromkeys(size.codec for some in sizes.values() for size in some))
    groups: dict[str, list[list[Cell | str]]] = {}
    for system, some in sizes.items():
        cells = {(size.dim, size.codec): _size(size) for size in some}
        dims = sorted({size.dim for size in some}, reverse=True)
        groups[system] = [
            [f"{dim:,}", *(cells.get((dim, codec), MISSING) for codec in codecs)] for dim in dims
        ]
    return Table(["Dimensions", *codecs], groups, FIGURES)


def won_lost(result: Comparison, rows: Rows) -> Table | None:
    """Tasks x other systems: how many queries the reference won, lost, or answered alike."""
    lines: list[list[Cell | str]] = []
    for name, task in result.tasks.items():
        counts = task.queries if isinstance(task, EvaluatedTask) else {}
        if counts:
            cells = (_counts(counts[other]) if other in counts else MISSING for other in rows.contenders)
            lines.append([name, *cells])
    return Table(["", *rows.contenders], {"": lines}) if lines else None


def queries(task: EvaluatedTask, name: str, other: str, folded: bool) -> Table | None:
    """The queries of a task on which the reference and ``other`` differ most."""
    found = task.queries.get(other)
    if not found or not (found.won or found.lost):
        return None
    groups = {
        heading: [
            [one.query, formatting.decimal(one.reference), formatting.decimal(one.other)] for one in some
        ]
        for heading, some in (("won", found.most_won), ("lost", found.most_lost))
        if some
    }
    return Table([f"Query of {name}", "reference", other], groups, name if folded else "")


def _counts(found: WonLost) -> Cell:
    return Cell(f"{found.won:,} won", [f"{found.lost:,} lost", f"{found.alike:,} alike"])


def _heads(rows: Rows) -> Iterator[Cell]:
    for system in rows.columns:
        yield Cell(system, ["reference"] if rows.others and system == rows.reference else [])


def _title(one: Row) -> Cell:
    return Cell(one.name, [one.about], "strong" if one.mean else "")


def _scores(scores: Mapping[str, Estimate], systems: Sequence[str]) -> Iterator[Cell]:
    """A cell per system; the best of several is marked."""
    best = max((score.value for score in scores.values()), default=0.0)
    for system in systems:
        score = scores.get(system)
        yield score_cell(score, best=score is not None and len(scores) > 1 and score.value == best)


def _size(size: SizeScore) -> Cell:
    cell = score_cell(size.score)
    return replace(cell, small=[*cell.small, f"{size.bytes:,.0f} B"])
