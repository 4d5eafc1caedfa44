"""`moembed compare`: which differences between evaluations are real."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

import typer

from moembed.cli.options import Json, when_interrupted
from moembed.cli.results import Page, ResultFile, borda_cells, require_outputs, write_result
from moembed.compare.estimates import Difference
from moembed.compare.formatting import decimal, difference, estimate, kind_name, metric_name
from moembed.compare.results import SCORE, Cells, Comparison
from moembed.console import print_json, print_table, say
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
    choose: Annotated[
        int | None, typer.Option(min=1, help="Choose so many tasks whose mean ranks the systems as all do.")
    ] = None,
    pair_seeds: Annotated[
        bool,
        typer.Option("--pair-seeds", help="Run i of every system saw the same batches: compare run by run."),
    ] = False,
    by: Annotated[
        Literal["task", "language", "length"] | None, typer.Option(help="Show these alone; default: all.")
    ] = None,
    out: ResultFile = None,
    html: Page = None,
    json_: Json = False,
) -> None:
    """Say which differences between systems are real, from the scores that `moembed evaluate --keep` wrote.

    Paired, item by item: 95 % intervals, p-values of randomisation tests after Holm's correction and effect
    sizes (Cohen's d), by task, language and length. With several seeds of a system, the intervals
    count how much seeds vary. Systems that have all tasks are ranked over them by Borda count.
    NAME=RUN gives a run a name. See docs/is-the-difference-real.md.

    Example: `moembed compare scores/bm25.parquet dense=scores/dense.parquet 'moe=scores/moe-*.parquet'`
    """
    from moembed.compare import runs as files
    from moembed.compare.comparison import compare
    from moembed.compare.ranks import choose_tasks, score_table
    from moembed.compare.verdict import cautions, sentences

    require_outputs(out, html)
    with when_interrupted(lambda: "nothing was written"):
        systems = files.read_runs(runs)
        if len(systems) < 2:
            raise UserError("give two runs or more: one has nothing to be compared to")
        paired = set(systems) - {reference or list(systems)[-1]} if pair_seeds else ()
        result = compare(files.only(systems, metric) if metric else systems, reference, paired=paired)
        if choose:
            _, tasks, score_ST = score_table(result)
            result = replace(result, chosen=choose_tasks(score_ST, tasks, choose))
    for sentence in cautions(result):
        say(f"note: {sentence}")
    if json_:
        print_json(result.to_json())
    else:
        _print(result, by)
        for sentence in sentences(result):
            print(sentence)
        if few := result.chosen:
            print(
                f"Of {few.of} tasks, {', '.join(few.tasks)} rank {few.systems} systems most as all do: "
                f"Spearman {few.spearman:.3f}; the mean over all tasks of a system that had no say in the "
                f"choice is {decimal(few.error)} off."
            )
    write_result(result, out, html)


def _print(result: Comparison, by: str | None) -> None:
    rows = list(_rows(result, by))
    if not rows:
        raise UserError(f"there is no {by} of which enough items are known: leave out --by")
    scores = [
        [title, metric_name(metric), *(_score(cells, metric, name) for name in result.systems)]
        for title, metric, cells in rows
    ]
    if result.borda and by in (None, "task"):
        scores.append(["rank", "Borda count", *borda_cells(result)])
    print_table("scores, 95 % intervals", ["", "metric", *result.systems], scores)
    differences = [
        [title, metric_name(metric), name, *_difference(by_metric[metric])]
        for title, metric, cells in rows
        for name, by_metric in cells.differences.items()
    ]
    head = ["", "metric", "system", "difference", "p", "p after Holm", "effect"]
    print_table(f"\ndifferences to {result.reference}, 95 % intervals", head, differences)
    print()


def _score(cells: Cells, metric: str, system: str) -> str:
    return estimate(cells.metrics[system][metric]) if system in cells.metrics else ""


def _rows(result: Comparison, by: str | None) -> Iterator[tuple[str, str, Cells]]:
    """Title and metric of what is shown; a language, length or kind that is the only one is left out."""
    if by in (None, "task"):
        for name, task in result.tasks.items():
            yield f"{name} ({kind_name(task.kind)})", task.main, task
        for kind, mean in result.kinds.items():
            if mean.tasks > 1 and len(result.kinds) > 1:
                yield f"mean of {kind_name(kind)}", mean.main, mean
        if len(result.tasks) > 1:
            yield "mean of all", SCORE, result.overall
    for section, groups in (("language", result.languages), ("length", result.lengths)):
        if by == section or (by is None and len(groups) > 1):
            for name, group in groups.items():
                yield f"{section} {name}", SCORE, group


def _difference(cell: Difference) -> list[str]:
    p_values = ("< 0.0001" if p < 1e-4 else f"{p:.4f}" for p in (cell.p_value, cell.p_holm))
    return [difference(cell), *p_values, decimal(cell.effect, "+")]
