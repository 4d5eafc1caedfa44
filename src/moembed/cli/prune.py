"""`moembed prune`: a model with fewer experts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from moembed.cli.options import MODEL, Json, Overwrite
from moembed.console import print_json, print_table


def prune(
    model: Annotated[str, typer.Argument(help=MODEL)],
    texts: Annotated[Path, typer.Option(help="JSONL, Parquet or CSV, as mixed as what the model will see.")],
    out: Annotated[Path, typer.Option(help="Folder of the new model.")],
    drop: Annotated[int, typer.Option(min=1, help="How many experts of every layer are taken out.")] = 1,
    column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Take out the experts that texts use least: less memory, at the same time per token.

    The router chooses among the others. What it costs, `moembed evaluate OLD NEW` says.

    Example: `moembed prune runs/demo --texts notes.jsonl --drop 2 --out models/fewer`
    """
    from moembed.runs.prune import prune_model

    made = prune_model(model, out, texts, drop, column, overwrite)
    if json_:
        print_json(asdict(made))
        return
    rows = [
        [str(layer.layer), " ".join(map(str, layer.dropped)), f"{layer.share:.1%}"] for layer in made.layers
    ]
    print_table("taken out", ["layer", "experts", "their share"], rows)
    cut = f", {made.truncated:,} of them cut: longer than the model reads" if made.truncated else ""
    print(
        f"{made.out}: {made.experts} experts a layer, {made.parameters:,} parameters instead of "
        f"{made.parameters_before:,}; by {made.texts:,} texts{cut}"
    )
