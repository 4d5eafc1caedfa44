"""`moembed experiment`: a grid of recipes, trained, evaluated and put into one table."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moembed.cli.options import Json, when_interrupted
from moembed.compare.formatting import duration
from moembed.console import print_json, print_table, say
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.experiment.table import Result


def experiment(
    file: Annotated[Path, typer.Argument(help="A YAML file, as docs/experiments.md describes it.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value of the file, such as recipe.steps=20.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs of every cell.")] = 3,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Stop by then; the same command goes on.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run this cell alone; may be given several times.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="The Markdown file to write; default: records/NAME.md.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells, check them, and estimate the time.")
    ] = False,
    priority: Annotated[
        int, typer.Option("--nice", min=0, max=19, help="How far this gives way to other programs.")
    ] = 19,
    json_: Json = False,
) -> None:
    """Train every cell of a file with several seeds on the same pairs, and say which differences are real.

    What is finished is never done again: stop it, start it again, or start it several times at once.

    Example: `moembed experiment recipes/experiments/ladder.yaml --seeds 3 --minutes 60`
    """
    _give_way(priority)
    chosen = tuple(only or ())
    if dry_run:
        _print_forecast(file, overrides or [], seeds, chosen, json_)
        return
    from moembed.experiment.run import run_experiment

    with when_interrupted(lambda: "what is finished is kept; the same command goes on"):
        result = run_experiment(
            file, overrides or [], seeds=seeds, minutes=minutes, only=chosen, record=record
        )
    if json_:
        print_json(result.to_json())
    else:
        _print(result)
    if result.failed and not result.comparison:
        name, why = next(iter(result.failed.items()))
        raise UserError(f"nothing can be compared, for {name} failed: {why}")


def _give_way(priority: int) -> None:
    """Lower the priority of this process, as ``nice`` does, where the system can."""
    if hasattr(os, "nice"):
        with suppress(OSError):
            os.nice(max(0, priority - os.nice(0)))


def _print(result: Result) -> None:
    from moembed.compare.verdict import sentences
    from moembed.experiment import table

    if result.comparison is None:
        say("there is nothing to compare yet: the control and another cell must be finished")
        return
    print_table(f"{result.plan.config.name}, 95 % intervals", table.HEAD, table.score_rows(result))
    if result.plan.config.tune:
        print_table("\nmean at every value, ± over seeds", *table.tuned_rows(result))
        if edges := table.at_the_edge(result):
            print(edges)
    if routing := table.routing_rows(result):
        print_table("\nrouters and experts, start → end", table.ROUTING, routing)
    print_table("\ncosts", table.COSTS, table.cost_rows(result))
    print()
    for sentence in sentences(result.comparison):
        print(sentence)


def _print_forecast(file: Path, overrides: list[str], seeds: int, only: tuple[str, ...], json_: bool) -> None:
    from dataclasses import asdict

    from moembed.experiment.run import forecast

    rows, source = forecast(file, overrides, seeds=seeds, only=only)
    total = sum(row.left * row.seconds for row in rows)
    if json_:
        print_json({"cells": [asdict(row) for row in rows], "seconds": total, "source": source})
        return
    cells = [
        [
            row.cell,
            row.changes,
            *map(str, (row.steps, row.done, row.left, row.failed)),
            duration(row.seconds),
        ]
        for row in rows
    ]
    print_table("", ["cell", "changes", "steps", "done", "left", "failed", "a run"], cells)
    print(f"about {duration(total)} in all for what is left; {source}")
