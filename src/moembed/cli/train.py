"""`moembed demo, train, upcycle, inspect`: making models and looking at them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moembed.cli.options import Json, Overwrite
from moembed.console import print_json, print_table


def demo(
    minutes: Annotated[float, typer.Option(help="Time budget of the training.", min=0.01)] = 5.0,
    base: Annotated[
        str, typer.Option(help="Dense model to start from: a folder, a hub id, or minilm.")
    ] = "minilm",
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    twin: Annotated[
        bool, typer.Option("--twin", help="Also train the dense base on the same batches.")
    ] = False,
    seed: int = 0,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """The whole line in miniature: real pairs, upcycle, train, prove, index.

    Pairs are (docstring summary, source code) from the Python packages installed beside moembed.

    Example: `moembed demo --minutes 5`
    """
    from moembed.demo import run_demo

    report = run_demo(minutes=minutes, base=base, out=out, twin=twin, seed=seed, overwrite=overwrite)
    if json_:
        print_json(report)


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file of recipes/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dotted for nested keys.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")
    ] = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Train on your own pairs: JSONL, Parquet or CSV with columns query, document[, negative…].

    Example: `moembed train recipes/finetune.yaml data=pairs.jsonl base=minilm out=runs/mine steps=200`
    """
    from moembed.recipe import load_recipe, run_recipe

    result = run_recipe(load_recipe(recipe, overrides or []), resume=resume, overwrite=overwrite)
    if json_:
        print_json(result)


def upcycle(
    model: Annotated[str, typer.Argument(help="A dense model: a folder, a hub id, or minilm.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new model.")],
    experts: Annotated[int, typer.Option(min=1)] = 8,
    top_k: Annotated[int, typer.Option(min=1, help="Experts per token.")] = 2,
    every: Annotated[int, typer.Option(min=1, help="Every how many layers one gets experts.")] = 2,
    published: Annotated[
        bool,
        typer.Option("--published", help="As Nomic Embed v2 did: raw router weights, dense biases dropped."),
    ] = False,
    seed: int = 0,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Turn a dense encoder into a Mixture of Experts; by default its vectors stay the same.

    Example: `moembed upcycle minilm models/minilm-moe --experts 8 --top-k 2`
    """
    from dataclasses import replace

    from moembed.model.embedder import Embedder
    from moembed.model.folder import read_folder
    from moembed.model.router import RouterConfig
    from moembed.recipe import locate_base, require_free
    from moembed.weights.upcycle import UpcycleConfig
    from moembed.weights.upcycle import upcycle as convert

    require_free(out, overwrite)
    options = UpcycleConfig(
        num_experts=experts,
        every=every,
        keep_biases=not published,
        router=RouterConfig(top_k=top_k, normalize=None if published else 1.0),
        seed=seed,
    )
    parts = read_folder(locate_base(model))
    config, state = convert(parts.config, parts.state, options)
    made = Embedder(replace(parts, config=config, state=state))
    made.save_pretrained(out)
    facts = {"out": str(out), "parameters": made.num_parameters(), "active": made.num_parameters(active=True)}
    if json_:
        print_json(facts)
    else:
        print(f"{out}: {facts['parameters']:,} parameters, {facts['active']:,} active per token")


def inspect(
    model: Annotated[str, typer.Argument(help="A folder, a run folder, a hub id, or minilm.")],
    json_: Json = False,
) -> None:
    """What a model is: layers, experts, prompts, pooling, total and active parameters.

    Example: `moembed inspect runs/demo`
    """
    from moembed.recipe import describe, locate_base

    facts = describe(locate_base(model))
    if json_:
        print_json(facts)
    else:
        print_table(
            str(model), ["", ""], [[key.replace("_", " "), _fact(value)] for key, value in facts.items()]
        )


def _fact(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item!r}" for key, item in value.items()) or "none"
    return str(value)
