"""Where a command leaves its result: checked before the work begins, written when it is done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moembed.console import say
from moembed.files import write_whole
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.compare.results import Comparison

ResultFile = Annotated[Path | None, typer.Option("--out", help="Also write the JSON result to this file.")]
Page = Annotated[
    Path | None, typer.Option("--html", help="Also write a page (and its figures beside it, as .json).")
]


def require_page(path: Path) -> None:
    """Refuse a page that could not be drawn or written once everything has been computed."""
    from moembed.report.plots import require_matplotlib

    if path.suffix != ".html":
        raise UserError(f"--html {path} does not end in .html: the figures go beside the page as .json")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} into: make it first")
    require_file(path)
    require_file(path.with_suffix(".json"))
    require_matplotlib()


def require_file(path: Path) -> None:
    """Refuse now a result file that could not be written when everything has been computed."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file to write")
    require_folder(path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"{path} may not be written: choose another file, or change its permissions")


def require_folder(folder: Path) -> None:
    """Make the folder, and try a file in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"no file can be written into {folder} ({reason}): choose another folder") from None


def write_json_result(path: Path, result: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode("utf-8", "replace")))


def write_result(result: Comparison, out: Path | None, page: Path | None) -> None:
    """Write the result to the files that were asked for; one that fails does not keep the others back.

    Raises:
        UserError: for the first that could not be written.
    """
    failed: list[UserError] = []
    for path in (out, page and page.with_suffix(".json")):
        if path:
            try:
                write_json_result(path, result.to_json())
            except UserError as error:
                failed.append(error)
    if page:
        from moembed.report.comparison import write_comparison

        try:
            write_comparison(page, result)
            say(f"The page is {page}")
        except UserError as error:
            failed.append(error)
    if failed:
        raise failed[0]


@contextmanager
def stopping(kept: str = "nothing was written") -> Iterator[None]:
    """Ctrl-C ends the command with one sentence, exit code 130; an interrupt may bring its own sentence."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        say(f"stopped: {str(stopped) or kept}")
        raise typer.Exit(130) from None
