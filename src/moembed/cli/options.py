"""Options that several commands share, how they load a model, and how they leave a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moembed.console import Interrupted, say
from moembed.files import write_json
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.embedder import Embedder

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out rows without usable texts.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, dotted for nested keys.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where the hardware has it.")]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Where a model has no safetensors, read pytorch_model.bin: its tensors, never its code.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Another seed, other random choices.")]
ResultFile = Annotated[Path | None, typer.Option("--out", help="Also write the JSON result to this file.")]
Page = Annotated[
    Path | None, typer.Option("--html", help="Also write a page (and its figures beside it, as .json).")
]
MODEL = "A folder, a run folder, a hub id (owner/name or owner/name@revision), or minilm."


@contextmanager
def when_interrupted(kept: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C, say what is kept and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(kept()) from None


def load_model(name: str, dtype: str, allow_pickle: bool = False) -> Embedder:
    from moembed.embedder import Embedder
    from moembed.folder.bases import locate_base
    from moembed.machine import best_dtype

    folder = locate_base(name, allow_pickle=allow_pickle)
    chosen = best_dtype() if dtype == "auto" else dtype
    return Embedder.from_pretrained(folder, dtype=chosen, allow_pickle=allow_pickle)


def require_page(path: Path) -> None:
    """Refuse now what would fail when everything has been computed."""
    from moembed.report.plots import require_matplotlib

    if path.suffix != ".html":
        raise UserError(f"--html {path} does not end in .html: the figures go beside the page as .json")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} into: make it first")
    require_matplotlib()


def leave(result: Mapping[str, Any], out: Path | None, page: Path | None) -> None:
    """Write the result of an evaluation to the files that were asked for, each whole or not at all."""
    for path in (out, page and page.with_suffix(".json")):
        if path:
            write_json(path, result)
    if page:
        from moembed.report.comparison import write_page

        write_page(page, result)
        say(f"The page is {page}")
