"""Where a command leaves its result: checked before the work begins, written when it is done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moembed.console import say
from moembed.files import require_writable, write_json
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.compare.results import Comparison

ResultFile = Annotated[Path | None, typer.Option("--out", help="Also write the JSON result to this file.")]
Page = Annotated[
    Path | None, typer.Option("--html", help="Also write a page (and its figures beside it, as .json).")
]


def require_outputs(out: Path | None, page: Path | None) -> None:
    """Refuse now what could not be drawn or written once everything has been computed."""
    if page:
        from moembed.report.plots import require_matplotlib

        if page.suffix != ".html":
            raise UserError(f"--html {page} does not end in .html: the figures go beside the page as .json")
        if page.parent.exists() and not page.parent.is_dir():
            raise UserError(f"{page.parent} is a file, so {page.name} cannot lie in it: name a folder")
        if not page.parent.is_dir():
            raise UserError(f"there is no folder {page.parent} to write {page.name} into: make it first")
        require_matplotlib()
    for path in (out, page, page and page.with_suffix(".json")):
        if path:
            require_writable(path)


def borda_cells(result: Comparison) -> list[str]:
    """The rank of every system and its points; empty for one that lacks a task."""
    found = [result.borda.get(system) for system in result.systems]
    return ["" if one is None else f"{one.rank} ({one.points:g} points)" for one in found]


def write_result(
    result: Comparison, out: Path | None, page: Path | None, figures: dict[str, Any] | None = None
) -> None:
    """Write the result to the files that were asked for; one that fails does not keep the others back.

    Args:
        figures: what is written to ``out``; None: the result.

    Raises:
        UserError: for the first that could not be written.
    """
    from moembed.report.comparison import write_comparison

    failed: list[UserError] = []
    for path in filter(None, (out, page and page.with_suffix(".json"), page)):
        try:
            if path == page:
                write_comparison(path, result)
                say(f"The page is {path}")
            else:
                write_json(path, figures if figures and path == out else result.to_json())
        except UserError as error:
            failed.append(error)
    if failed:
        raise failed[0]
