"""What people see: progress on stderr, tables and JSON on stdout."""

from __future__ import annotations

import json
import math
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_PLAIN_EVERY_SECONDS = 10.0


def say(text: str) -> None:
    """One plain line on stderr; none where stderr is closed."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, and a sentence that says what is kept and how to go on."""


_result: list[TextIO] = []  # where JSON goes, while everything else that is printed goes to stderr


@contextmanager
def results_alone(wanted: bool) -> Iterator[None]:
    """If ``wanted``, standard output gets what ``print_json`` prints and nothing else."""
    if not wanted:
        yield
        return
    _result.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _result.pop()


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with ETA on a terminal, a line every ten seconds elsewhere; yields ``advance(count)``."""
    console = Console(file=sys.stderr)
    # as a description, for names of files hold braces and brackets, which a format or markup would read
    named = TextColumn("{task.description}", markup=False)
    columns = (named, BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    done, began = 0, time.monotonic()
    shown = began
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total)

        def advance(count: int) -> None:
            nonlocal done, shown
            done += count
            progress.advance(task, count)
            if not console.is_terminal and time.monotonic() - shown > _PLAIN_EVERY_SECONDS:
                shown = time.monotonic()
                ahead = f" of {total}" if total else ""
                if total and 0 < done <= total:
                    ahead += f", ETA {clock((shown - began) / done * (total - done))}"
                say(f"{what}: {done}{ahead}")

        yield advance


def clock(seconds: float) -> str:
    """``4:05`` of 245 seconds, ``1:04:05`` of an hour more."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_json(value: Any) -> None:
    """On standard output. NaN and infinity, which JSON lacks, become null; dates and times ISO 8601, bytes
    base64, and other values their text."""
    value = _finite(value)
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_written)
    out = _result[-1] if _result else sys.stdout
    try:
        text.encode(getattr(out, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # what a terminal cannot show becomes \\xfc there, which is no JSON
        text = json.dumps(value, indent=2, allow_nan=False, default=_written)
    print(text, file=out)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _written(value: Any) -> str:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """``title`` is a line of its own, however narrow the table: rich would wrap it at the table's width."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(Text(name), justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # not as markup, which would take "[de]" out of a name
    console = Console()
    if not console.is_terminal:  # a pipe has no width; do not wrap for one
        console = Console(width=200)
    if title:
        console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(table)
