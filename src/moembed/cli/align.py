"""`moembed align` and `moembed fuse`: finished vectors, moved or put together."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from moembed.cli.options import MODEL, Json, Overwrite, environment_tag
from moembed.compare.formatting import difference, estimate
from moembed.console import print_json, print_table, progress_bar, say
from moembed.types import UserError

SWEEP = "0,0.25,0.5,0.75,1"


def align(
    model: Annotated[str, typer.Argument(help=MODEL)],
    texts: Annotated[Path, typer.Option(help="JSONL, Parquet or CSV of training texts with their groups.")],
    out: Annotated[Path, typer.Option(help="Folder of the new model.")],
    by: Annotated[str, typer.Option(help="Column that names the group of each text.")] = "language",
    column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    role: Annotated[
        str, typer.Option(help="What the texts are embedded for: query or document.")
    ] = "document",
    method: Annotated[
        Literal["project", "shift"],
        typer.Option(
            help="project: directions go from all texts. shift: each language, found in the text, moves."
        ),
    ] = "project",
    strengths: Annotated[
        str | None,
        typer.Option(help=f"Shares of the gap that are closed; default: 1, and with --tasks {SWEEP}."),
    ] = None,
    tasks: Annotated[
        list[Path] | None,
        typer.Option(help="Tasks that choose among the strengths; not those you report."),
    ] = None,
    sample: Annotated[int, typer.Option(min=2, help="Texts of a group that are read, the first.")] = 2000,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Close the gap between languages, or other groups of texts, in the vectors of a model.

    The gap is found on training texts. With tasks, the strength is the one of --strengths that scores best on
    them; all strengths are reported, and 0 with them.

    Example: `moembed align me5-small --texts texts.parquet --by language --out models/aligned`
    """
    from moembed.encoding import cut_texts
    from moembed.runs.align import AlignPlan, few_texts, unmoved_is_better
    from moembed.runs.align import align as run

    chosen = _numbers("--strengths", strengths or (SWEEP if tasks else "1"))
    looked_at = tuple(tasks or ())
    plan = AlignPlan(texts, by, column, role, method, chosen, looked_at, sample, environment_tag())
    made = run(model, out, plan, overwrite, progress_bar)
    if few := few_texts(made):
        say(f"note: the means of {', '.join(few)} rest on few texts, and hold much of what these are about")
    if made.truncated:
        say(f"note: {cut_texts(made.truncated)}")
    if better := unmoved_is_better(made):
        say(f"note: {better}")
    if json_:
        print_json(asdict(made))
        return
    rows = [
        [
            f"{entry.strength:g}",
            f"{entry.gap:.3f}",
            estimate(entry.score) if entry.score else "",
            difference(entry.difference) if entry.difference else "",
        ]
        for entry in made.sweep
    ]
    head = ["strength", "distance of means", "mean score", "difference to 0"]
    print_table(f"{made.method}, {len(made.groups)} groups", head if tasks else head[:2],
                [row if tasks else row[:2] for row in rows])  # fmt: skip
    print(f"{made.out}: strength {made.strength:g}, {made.parameters:,} numbers more")


def fuse(
    models: Annotated[list[str], typer.Argument(help=f"Two or more models. {MODEL}")],
    out: Annotated[Path, typer.Option(help="Folder that names the models and how they go together.")],
    weights: Annotated[str, typer.Option(help="Of each model, as 0.5,0.5; default: as much of each.")] = "",
    dim: Annotated[
        int | None, typer.Option(min=1, help="Coordinates to keep, fitted to --texts; default: all.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="JSONL, Parquet or CSV of training texts for --dim.")
    ] = None,
    column: Annotated[str, typer.Option(help="Column of --texts that holds the text.")] = "text",
    role: Annotated[
        str, typer.Option(help="What the texts are embedded for: query or document.")
    ] = "document",
    sample: Annotated[int, typer.Option(min=2, help="Texts that are read, the first.")] = 20_000,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Put the vectors of several models side by side, weighted, and in fewer coordinates where asked.

    The folder computes with the models where they lie now.

    Example: `moembed fuse minilm me5-small --weights 0.3,0.7 --texts texts.jsonl --dim 384 --out models/both`
    """
    from moembed.encoding import cut_texts
    from moembed.runs.fuse import FusePlan
    from moembed.runs.fuse import fuse as run

    shares = _numbers("--weights", weights) if weights else None
    plan = FusePlan(shares, dim, texts, column, role, sample, environment_tag())
    made = run(models, out, plan, overwrite, progress_bar)
    if made.truncated:
        say(f"note: {cut_texts(made.truncated)}")
    if json_:
        print_json(asdict(made))
        return
    told = ", ".join(f"{name} {weight:g}" for name, weight in zip(made.models, made.weights, strict=True))
    kept = f", {made.kept:.1%} of the squared length kept" if dim else ""
    print(f"{made.out}: {told}; {made.dim} coordinates{kept}")


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} {text!r} is not a list of numbers such as 0.5,0.5") from None
