"""`moembed merge`: one model of several."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from moembed.cli.options import MODEL, Json, Overwrite
from moembed.console import print_json
from moembed.types import UserError


def merge(
    models: Annotated[list[str], typer.Argument(help=f"Two or more models. {MODEL}")],
    out: Annotated[Path, typer.Option(help="Folder of the new model.")],
    method: Annotated[
        Literal["average", "arithmetic", "ties", "slerp", "self_positioning"],
        typer.Option(help="See docs/merging.md."),
    ] = "average",
    weights: Annotated[str, typer.Option(help="Of each model, as 0.5,0.5; default: as much of each.")] = "",
    base: Annotated[
        str | None,
        typer.Option(help="What all were trained from: arithmetic, ties, self_positioning."),
    ] = None,
    scale: Annotated[
        float, typer.Option(min=0, help="How much of the differences from the base is added.")
    ] = 1.0,
    density: Annotated[
        float, typer.Option(min=0, max=1, help="ties: the share of each difference that stays.")
    ] = 0.2,
    probe: Annotated[
        str | None, typer.Option(help="self_positioning: pairs on which the weights are learned.")
    ] = None,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Merge models that were trained from one: average, task arithmetic, TIES or slerp of their weights,
    or a place between them that is learned on pairs.

    Models without a common ancestor are refused: their experts are not the same, nor are their weights.

    Example: `moembed merge runs/a runs/b --method slerp --weights 0.7,0.3 --out models/merged`
    """
    from moembed.runs.merge import MergePlan
    from moembed.runs.merge import merge as run

    try:
        numbers = tuple(float(part) for part in weights.split(",")) if weights else None
    except ValueError:
        raise UserError(f"--weights {weights!r} is not a list of numbers such as 0.5,0.5") from None
    made = run(models, out, MergePlan(method, numbers, base, scale, density, probe), overwrite)
    if json_:
        print_json(asdict(made))
        return
    print(f"{made.out}: {made.parameters:,} parameters, {made.method} of {', '.join(models)}")
    if found := made.position:
        told = ", ".join(f"{weight:.3f}" for weight in found.weights)
        others = ", ".join(f"{name} {loss:.4f}" for name, loss in found.others.items())
        how = "learned" if found.learned else "descent found nothing better"
        size = f", scale {found.scale:.3f}" if base else ""
        print(f"weights {told}{size} ({how}); loss on held-out pairs {found.loss:.4f}, of {others}")
