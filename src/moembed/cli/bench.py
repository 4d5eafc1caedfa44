"""`moembed bench`: speed and memory, against the fastest peers at hand."""

from __future__ import annotations

import shlex
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from moembed.cli.options import Json, when_interrupted
from moembed.console import print_json, print_table, progress_bar


def bench(
    suites: Annotated[
        list[str] | None, typer.Argument(help="Suites to run; default: all that can run here.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller sizes and fewer rounds.")] = False,
    repeats: Annotated[int | None, typer.Option(min=1, help="Rounds; default 3, with --quick 2.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write a Markdown record to this file.")] = None,
    json_: Json = False,
) -> None:
    """Measure speed and memory against the fastest peers at hand; every target says whether it was met.

    A suite is a file of `benchmarks/`; a name that is none of them lists them all.

    Example: `moembed bench moe encode --out records/performance.md`
    """
    from moembed.files import require_writable
    from moembed.machine import machine
    from moembed.runs import bench as harness
    from moembed.runs.record import Record

    options = harness.Options.here(repeats or (2 if quick else 3), quick, threads)
    names = suites or [name for name in harness.suites() if name != "gpu" or options.device == "cuda"]
    chosen = [harness.load(name) for name in dict.fromkeys(names)]
    if out:
        require_writable(out)
    command = [*names, *["--quick"] * quick, "--repeats", options.repeats, "--threads", options.threads]
    record = Record(
        date=date.today().isoformat(),
        command=shlex.join(["moembed", "bench", *map(str, command)]),
        machine=machine(),
        suites={},
    )
    kept = f"what was measured is in {out}" if out else "what was measured is printed above"
    for suite in chosen:
        rows = record.suites.setdefault(suite, [])
        try:
            with when_interrupted(lambda: kept), progress_bar(suite.name, None) as advance:
                for row in suite.rows(options):
                    rows.append(row)
                    advance(1)
        finally:  # what was measured until an interruption is kept
            if not json_:
                print_table(f"{suite.name}: {suite.question}", harness.HEAD, record.table(suite))
            if out:
                record.write(out)
    if json_:
        print_json(record.as_dict())
    else:
        print_table("machine", ["", ""], [list(fact) for fact in record.facts()])
