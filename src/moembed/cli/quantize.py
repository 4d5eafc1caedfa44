"""`moembed quantize`: a model in few bits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from moembed.cli.options import MODEL, Json, Overwrite, environment_tag
from moembed.console import print_json, print_table


def quantize(
    model: Annotated[str, typer.Argument(help=MODEL)],
    out: Annotated[Path, typer.Option(help="Folder of the new model.")],
    avg_bits: Annotated[
        float, typer.Option(min=4, max=8, help="Bits of a weight of the layers, on average.")
    ] = 5.5,
    score: Annotated[
        Literal["lim", "zd"], typer.Option(help="What makes a layer important: docs/quantizing.md.")
    ] = "lim",
    order: Annotated[
        Literal["score", "reverse", "random"],
        typer.Option(help="Which layers get more bits; the last two are for comparing."),
    ] = "score",
    texts: Annotated[
        Path | None,
        typer.Option(help="JSONL, Parquet or CSV of texts to find the scores with; default: numpy's code."),
    ] = None,
    column: Annotated[str, typer.Option(help="Column of --texts that holds the text.")] = "text",
    sample: Annotated[int, typer.Option(min=1, help="How many of the texts are read.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of --order random.")] = 0,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Store a model in 8 and 4 bits, with 8 where a layer or an expert matters most.

    Routers, norms and biases stay as they are, the table of words gets 8 bits. The folder is read like any
    other and computes in float32, bfloat16 or int8.

    Example: `moembed quantize runs/demo --avg-bits 5.5 --score lim --out models/small`
    """
    from moembed.runs.quantize import QuantizePlan, quantize_model

    plan = QuantizePlan(avg_bits, score, order, texts, column, sample, seed, environment_tag())
    made = quantize_model(model, out, plan, overwrite)
    if json_:
        print_json(asdict(made))
        return
    rows = [[part.part, f"{part.weights:,}", f"{part.score:.4f}", str(part.bits)] for part in made.parts]
    print_table("bits", ["part", "weights", score, "bits"], rows)
    print(
        f"{made.out}: {made.avg_bits:.2f} bits on average, {made.file_bytes / 1e6:.1f} MB instead of "
        f"{made.float_bytes / 1e6:.1f} MB in float32"
    )
