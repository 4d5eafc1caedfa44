"""One HTML page about an evaluation: how good the systems are, what differs for real, and at what cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from moembed.compare import formatting, verdict
from moembed.compare.results import Comparison
from moembed.evaluation.result import EvaluatedTask, EvaluationResult
from moembed.report.comparison import cards, tables, text
from moembed.report.comparison.rows import Rows, costs, sizes, sort
from moembed.report.page import write_page
from moembed.report.pieces import Card, Table, Tile, made

TILES = 4  # systems among the tiles, at most


def write_comparison(path: Path, result: Comparison) -> None:
    """Write the page of ``result``; the same result gives the same bytes.

    Of a plain comparison there is nothing on costs, sizes of vectors and experts: those sections are left
    out.

    Raises:
        UserError: matplotlib is missing, or the page cannot be written.
    """
    rows = sort(result)
    routers = result.routers if isinstance(result, EvaluationResult) else {}
    write_page(
        path,
        "comparison",
        title=_title(rows),
        lead=text.summary(result),
        tiles=list(_tiles(rows)),
        scores=list(_scores(result, rows)),
        differences=list(_differences(result, rows)),
        queries=list(_queries(result, rows)),
        languages=list(cards.by("language", rows.languages, rows)),
        lengths=list(cards.by("length in characters", rows.lengths, rows)),
        sizes=list(cards.sizes(sizes(result), rows)),
        costs=list(cards.costs(costs(result), rows)),
        experts=list(cards.routers(routers)),
        notes=list(text.notes(result)),
        method=text.method(rows),
        run=list(made(result.made)) if isinstance(result, EvaluationResult) and result.made else [],
    )


def _title(rows: Rows) -> str:
    others = rows.contenders
    if not others:
        return rows.reference
    named = formatting.listing(others) if len(others) < 4 else f"{len(others)} systems"
    return f"{rows.reference} against {named}"


def _tiles(rows: Rows) -> Iterator[Tile]:
    """The score of the reference and of what it is compared to, and how much there was to compare."""
    overall = rows.overall
    systems = [system for system in rows.columns if system in overall.scores]
    for system in systems[:TILES]:
        score, gap = overall.scores[system], overall.gaps.get(system)
        more = formatting.interval(score.low, score.high)
        if gap:
            more = f"{formatting.decimal(gap.mean, '+')}, {formatting.p_value(gap.p_holm)}"
        yield Tile(system, formatting.decimal(score.value), more)
    single = [gap for row in rows.single for gap in row.gaps.values()]
    if len(single) > 1:
        real = sum(map(verdict.is_real, single))
        yield Tile("Real differences", str(real), f"of {len(single)} on single tasks")
    tasks = formatting.plural(len(rows.single), "task")
    yield Tile(rows.noun.capitalize(), f"{rows.items:,}", f"in {tasks}")


def _scores(result: Comparison, rows: Rows) -> Iterator[Card]:
    about = "In brackets: the 95 % interval." + " Marked: the highest score." * bool(rows.others)
    every = [tables.scores(rows), *tables.metrics(result, rows)]
    yield Card("Every system on every task", about, wide=True, tables=every)
    yield from cards.by("task", rows.single, rows)


def _differences(result: Comparison, rows: Rows) -> Iterator[Card]:
    if not rows.others:
        return
    yield Card("In words", wide=True, sentences=verdict.sentences(result))
    about = (
        f"Each system minus {rows.reference}, with its 95 % interval. "
        f"▲ really better, ▼ really worse: p < {verdict.REAL} after Holm's correction."
    )
    yield Card(f"Differences to {rows.reference}", about, wide=True, tables=[tables.differences(rows)])


def _queries(result: Comparison, rows: Rows) -> Iterator[Card]:
    """How many queries the reference won and lost, and which, against the first of the other systems."""
    counts = tables.won_lost(result, rows)
    if counts is None:
        return
    about = f"Won: {rows.reference} scores higher on the query than the system above."
    yield Card("How many", about, wide=True, tables=[counts])
    other = rows.contenders[0]
    tasks = {name: task for name, task in result.tasks.items() if isinstance(task, EvaluatedTask)}
    found: Iterator[Table | None] = (
        tables.queries(task, name, other, folded=len(tasks) > 1) for name, task in tasks.items()
    )
    if shown := [table for table in found if table]:
        about = f"The largest differences between {rows.reference}, the reference, and {other}."
        yield Card(f"Which, against {other}", about, wide=True, tables=shown)
