"""`moembed compare`: which differences between evaluations are real."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import typer

from moembed.cli.options import Json, Page, ResultFile, leave, require_page
from moembed.console import interval, print_json, print_table
from moembed.types import UserError


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Files that `evaluate --keep` wrote, or a folder of them per system, one a seed."
        ),
    ],
    reference: Annotated[
        str | None, typer.Option(help="The system the others are compared to; default: the last.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Compare by this metric; default: the main one of each kind of task.")
    ] = None,
    by: Annotated[
        Literal["task", "language", "length"] | None, typer.Option(help="Show these alone; default: all.")
    ] = None,
    out: ResultFile = None,
    html: Page = None,
    json_: Json = False,
) -> None:
    """Say which differences between systems are real, from the scores that `moembed evaluate --keep` wrote.

    Paired, item by item: 95 % intervals, p-values of randomisation tests after Holm's correction and effect
    sizes (Cohen's d), by task, language and length. Several seeds of a system make their luck part of it.
    NAME=RUN gives a run a name. See docs/is-the-difference-real.md.

    Example: `moembed compare scores/bm25.parquet dense=scores/dense.parquet 'moe=scores/moe-*.parquet'`
    """
    from moembed.compare import runs as files
    from moembed.compare.comparison import compare
    from moembed.compare.verdict import sentences

    if html:
        require_page(html)
    systems = files.read_runs(runs)
    if len(systems) < 2:
        raise UserError("give two runs or more: one has nothing to be compared to")
    result = compare(files.only(systems, metric) if metric else systems, reference)
    leave(result, out, html)
    if json_:
        print_json(result)
        return
    _print(result, by)
    for sentence in sentences(result):
        print(sentence)


def _print(result: Mapping[str, Any], by: str | None) -> None:
    rows = list(_rows(result, by))
    if not rows:
        raise UserError(f"there is no {by} of which enough items are known: leave out --by")
    scores = [
        [
            title,
            _named(metric),
            *(_score(row["metrics"].get(name), metric) for name in result["systems"]),
        ]
        for title, metric, row in rows
    ]
    print_table("scores, 95 % intervals", ["", "metric", *result["systems"]], scores)
    differences = [
        [title, _named(metric), name, *_difference(cells[metric])]
        for title, metric, row in rows
        for name, cells in row["differences"].items()
    ]
    head = ["", "metric", "system", "difference", "p", "p after Holm", "effect"]
    print_table(f"\ndifferences to {result['reference']}, 95 % intervals", head, differences)
    print()


def _named(metric: str) -> str:
    from moembed.report.words import metric_name

    return metric if metric == "score" else metric_name(metric)


def _score(cells: Mapping[str, Any] | None, metric: str) -> str:
    return interval(cells[metric]) if cells else ""


def _rows(result: Mapping[str, Any], by: str | None) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Title and metric of what is shown; a language, length or kind that is the only one is left out."""
    tasks, kinds = result["tasks"], result["kinds"]
    if by in (None, "task"):
        for name, task in tasks.items():
            yield name, task["main"], task
        for kind, row in kinds.items():
            if row["tasks"] > 1 and len(kinds) > 1:
                yield f"mean of {kind}", row["main"], row
        if len(tasks) > 1:
            yield "mean of all", "score", result["overall"]
    for section in ("language", "length"):
        rows = result[f"{section}s"]
        if by == section or (by is None and len(rows) > 1):
            for name, row in rows.items():
                yield f"{section} {name}", "score", row


def _difference(cell: Mapping[str, float]) -> list[str]:
    return [
        f"{cell['mean']:+.3f} [{cell['low']:+.3f}, {cell['high']:+.3f}]",
        *("< 0.0001" if cell[p] < 1e-4 else f"{cell[p]:.4f}" for p in ("p_value", "p_holm")),
        f"{cell['effect']:+.2f}",
    ]
