"""`moembed data convert`: labelled files -> pairs for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moembed.cli.options import Json, Seed, SkipBadRows
from moembed.console import print_json, say
from moembed.types import UserError

_USUAL = "Default: a usual name that the first row has."


def convert(
    file: Annotated[str, typer.Argument(help="Labelled rows: JSONL, Parquet or CSV.")],
    task: Annotated[
        Literal["sts", "classification", "clustering"], typer.Option(help="The task_type they are for.")
    ],
    out: Annotated[Path, typer.Option(help="The pairs: .jsonl, .jsonl.gz or .jsonl.zst.")],
    first: Annotated[str | None, typer.Option(help=f"sts: column of the first text. {_USUAL}")] = None,
    second: Annotated[str | None, typer.Option(help=f"sts: column of the second text. {_USUAL}")] = None,
    score: Annotated[str | None, typer.Option(help=f"sts: column of the score. {_USUAL}")] = None,
    text: Annotated[str | None, typer.Option(help=f"Other tasks: column of the text. {_USUAL}")] = None,
    label: Annotated[str | None, typer.Option(help=f"Other tasks: column of the label. {_USUAL}")] = None,
    negatives: Annotated[
        int, typer.Option(min=0, max=1000, help="Other tasks: texts of other labels for every pair.")
    ] = 0,
    seed: Seed = 0,
    skip_bad_rows: SkipBadRows = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    json_: Json = False,
) -> None:
    """Make pairs of labelled texts: two texts and a score, or two texts of one label.

    A recipe reads them with `task_type` of the source, see docs/data.md.

    Example: `moembed data convert banking77.parquet --task classification --out pairs.jsonl --negatives 4`
    """
    from dataclasses import asdict

    from moembed.data.convert import convert_file

    if out.exists() and not overwrite:
        raise UserError(f"{out} already exists: choose another name, or pass --overwrite")
    of_scores = {"first": first, "second": second, "score": score}
    of_labels = {"text": text, "label": label}
    columns, others = (of_scores, of_labels) if task == "sts" else (of_labels, of_scores)
    unused = [f"--{name}" for name, value in others.items() if value is not None]
    unused += ["--negatives"] if task == "sts" and negatives else []
    if unused:
        raise UserError(f"{unused[0]} means nothing for --task {task}: leave it out")
    done = convert_file(file, out, task, columns, negatives, seed, skip_bad_rows)
    for note in done.notes:
        say(f"note: {note}")
    if json_:
        print_json({"out": str(out)} | asdict(done))
        return
    read = ", ".join(f"{key} from {column}" for key, column in done.columns.items())
    skipped = f"; {done.skipped:,} bad rows skipped" if done.skipped else ""
    labels = f" of {done.labels:,} labels" if done.labels else ""
    print(f"{out}: {done.pairs:,} pairs{labels} from {done.rows:,} rows ({read}){skipped}")
