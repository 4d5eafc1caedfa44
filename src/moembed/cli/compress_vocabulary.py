"""`moembed compress-vocabulary`: the table of words in less memory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from moembed.cli.options import MODEL, Json, Overwrite
from moembed.console import print_json


def compress_vocabulary(
    model: Annotated[str, typer.Argument(help=MODEL)],
    method: Annotated[
        Literal[
            "int8", "int4", "pruning", "low_rank", "pq", "hash", "quotient_remainder", "tensor_train", "dpq"
        ],
        typer.Option(help="See docs/vocabulary.md; hash, quotient_remainder and dpq are to be trained."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new model.")],
    ratio: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of the table's bytes in float32 it may take; int8 and int4 have theirs."
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of low_rank and tensor_train, in place of --ratio.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of k-means: pq and dpq.")] = 0,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Store the table of words in fewer bytes, and serve from that form: it is never made whole.

    The folder is read, served and trained like any other by moembed; other libraries cannot read it.

    Example: `moembed compress-vocabulary minilm --method pq --ratio 0.07 --out models/small`
    """
    from moembed.config import validate
    from moembed.runs.compress_vocabulary import compress_model
    from moembed.weights.compress_vocabulary import VocabularyConfig

    given = {"method": method, "ratio": ratio, "rank": rank, "seed": seed}
    made = compress_model(model, out, validate(VocabularyConfig, given), overwrite)
    if json_:
        print_json(asdict(made))
        return
    table = made.table
    print(
        f"{made.out}: words by {table.method}, {table.bytes / 1e6:.2f} MB instead of "
        f"{table.float_bytes / 1e6:.2f} MB in float32, relative error {table.error:.4f}; the weights are "
        f"{made.file_bytes / 1e6:.1f} MB"
    )
    if made.needs_training:
        print(f"{table.method} starts far from the model it was made of: train it, as with base={made.out}")
