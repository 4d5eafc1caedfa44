"""`moembed bench`: speed and memory, against the fastest peers at hand."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moembed.cli.options import Json, when_interrupted
from moembed.console import print_json, print_table, progress_bar, say

if TYPE_CHECKING:
    from moembed.runs.bench import Options, Suite
    from moembed.runs.record import Record


def bench(
    suites: Annotated[
        list[str] | None, typer.Argument(help="Suites to run; default: all that can run here.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller sizes and fewer rounds.")] = False,
    repeats: Annotated[int | None, typer.Option(min=1, help="Rounds; default 3, with --quick 2.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice.")] = None,
    against: Annotated[
        str | None,
        typer.Option(help="A folder with src/moembed, or a commit, to run beside this code: suite `demo`."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write a Markdown record: a file, or a folder for performance-KIND-OF-CPU.md."
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Measure speed and memory against the fastest peers at hand; every target says whether it was met.

    A suite is a file of `benchmarks/`; a name that is none of them lists them all. Where other programs use
    the machine meanwhile, the record says in its first line that its figures are not to be quoted.

    Example: `moembed bench start encode --out records`
    """
    from moembed.files import require_writable
    from moembed.machine import machine
    from moembed.runs import bench as harness
    from moembed.runs.load import look
    from moembed.runs.record import Record
    from moembed.runs.source_tree import source_tree
    from moembed.types import UserError

    rounds = repeats or (2 if quick else 3)
    with source_tree(against) if against else nullcontext() as other:
        options = harness.Options.here(rounds, quick, threads, other)
        left_out = () if options.device == "cuda" else harness.GPU_SUITES
        names = suites or [name for name in harness.suites() if name not in left_out]
        if against and "demo" not in names:
            raise UserError("--against is read by the suite demo alone: name it among the suites")
        chosen = [harness.load(name) for name in dict.fromkeys(names)]
        facts = machine()
        if out and out.is_dir():
            out = out / f"performance-{facts['kind']}.md"
        if out:
            require_writable(out)
        command = [*names, *["--quick"] * quick, "--repeats", rounds, "--threads", options.threads]
        command += ["--against", against] if against else []
        record = Record(
            date=date.today().isoformat(),
            command=shlex.join(["moembed", "bench", *map(str, command)]),
            machine=facts,
            suites={},
            load=look(),
        )
        for suite in chosen:
            _measure(suite, options, record, out, shown=not json_)
    if json_:
        print_json(record.as_dict())
    else:
        print_table("machine", ["", ""], [list(fact) for fact in record.facts()])
    if warning := record.warning():
        say(warning)


def _measure(suite: Suite, options: Options, record: Record, out: Path | None, shown: bool) -> None:
    """Add a suite's rows to the record; what was measured until an interruption is kept."""
    from moembed.runs.bench import HEAD
    from moembed.runs.load import read, used_by_others

    kept = f"what was measured is in {out}" if out else "what was measured is printed above"
    rows = record.suites.setdefault(suite, [])
    start = read()
    try:
        with when_interrupted(lambda: kept), progress_bar(suite.name, None) as advance:
            for row in suite.rows(options):
                rows.append(row)
                advance(1)
    finally:
        end = read()
        record.seconds[suite.name] = end.wall - start.wall
        record.load.during[suite.name] = used_by_others(start, end)
        if shown:
            print_table(f"{suite.name}: {suite.question}", HEAD, record.table(suite))
        if out:
            record.write(out)
