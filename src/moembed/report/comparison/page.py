"""One HTML page about an evaluation: how good the systems are, what differs for real, and at what cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from moembed.compare import formatting, verdict
from moembed.compare.results import Comparison
from moembed.evaluation.result import EvaluationResult
from moembed.report.comparison import cards, tables, text
from moembed.report.comparison.rows import Rows, costs, sizes, sort
from moembed.report.page import write_page
from moembed.report.pieces import Card, Tile

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
        languages=list(cards.by("language", rows.languages, rows)),
        lengths=list(cards.by("length in characters", rows.lengths, rows)),
        sizes=list(cards.sizes(sizes(result), rows)),
        costs=list(cards.costs(costs(result), rows)),
        experts=list(cards.routers(routers)),
        notes=list(text.notes(result)),
        method=text.method(rows),
    )


def _title(rows: Rows) -> str:
    others = rows.others
    if not others:
        return rows.reference
    named = formatting.listing(others) if len(others) < 4 else f"{len(others)} systems"
    return f"{rows.reference} against {named}"


def _tiles(rows: Rows) -> Iterator[Tile]:
    """The score of the reference and of what it is compared to, and how much there was to compare."""
    overall = rows.overall
    systems = [system for system in (rows.reference, *rows.others) if system in overall.scores]
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
