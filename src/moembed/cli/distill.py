"""`moembed distill`: a small model that gives a large one's vectors, from texts alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from moembed.cli.options import ENCODER, MODEL, Json, Overwrite, Resume
from moembed.console import print_json


def distill(
    teacher: Annotated[
        str, typer.Option(help=f"Whose vectors are learned. {ENCODER} Or st:NAME of sentence-transformers.")
    ],
    texts: Annotated[list[str], typer.Option(help="JSONL, Parquet, CSV or .txt (a text per line).")],
    out: Annotated[Path, typer.Option(help="Run folder.")],
    student: Annotated[str, typer.Option(help=f"The model to start from. {MODEL}")] = "minilm",
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value of a recipe with `task: distillation`, as epochs=3.")
    ] = None,
    column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    role: Annotated[
        Literal["query", "document", "both"], typer.Option(help="What the texts are embedded for.")
    ] = "both",
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Train a student to give the vectors of a teacher: LEAF. One epoch, unless steps, epochs or minutes say.

    Documents embedded by the teacher can then be searched with the student: see docs/distillation.md.

    Example: `moembed distill --teacher models/large --student minilm --texts texts.jsonl --out runs/small`
    """
    from moembed.runs.distill import distill as run
    from moembed.runs.distill import load_distillation
    from moembed.runs.training_run import ENDS

    given = list(overrides or [])
    ends = [] if ENDS & {override.partition("=")[0] for override in given} else ["epochs=1"]
    data = json.dumps([{"path": path, "text": column, "role": role} for path in texts])
    said = [f"teacher={json.dumps(teacher)}", f"base={json.dumps(student)}", f"out={json.dumps(str(out))}"]
    result = run(
        load_distillation(None, [*said, f"data={data}", *ends, *given]), resume=resume, overwrite=overwrite
    )
    if json_:
        print_json(asdict(result))
