"""`moembed demo, train, upcycle, inspect`: making models and looking at them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from moembed.cli.options import (
    MODEL,
    AllowPickle,
    DryRun,
    Json,
    Overrides,
    Overwrite,
    Resume,
    Seed,
    load_model,
)
from moembed.console import print_json, print_table

_WORDS = ["expert", "words", "pieces of words"]


def demo(
    minutes: Annotated[float, typer.Option(help="Time budget of the training.", min=0.01, max=100_000)] = 5.0,
    base: Annotated[
        str, typer.Option(help="Dense model to start from: a folder, a hub id, or minilm.")
    ] = "minilm",
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    twin: Annotated[
        bool, typer.Option("--twin", help="Also train the dense base on the same batches.")
    ] = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """The whole line in miniature: real pairs, upcycle, train, prove, index.

    Pairs are (docstring summary, source code) from the Python packages installed beside moembed.

    What the defaults gave: records/demo.md; whether experts help: docs/do-experts-help.md.

    Example: `moembed demo --minutes 5`
    """
    from moembed.runs.demo import run_demo

    report = run_demo(minutes=minutes, base=base, out=out, twin=twin, seed=seed, overwrite=overwrite)
    if json_:
        print_json(report)


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file of recipes/.")],
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Train on your own pairs: JSONL, Parquet or CSV with columns query, document[, negative…].

    A recipe with `task: reranking` trains a reranker on them, see docs/reranking.md; one with
    `task: distillation` a student on texts, see docs/distillation.md; one with `stages` does one after the
    other, see docs/training.md.

    Example: `moembed train recipes/finetune.yaml data=pairs.jsonl base=minilm out=runs/mine steps=200`
    """
    # several processes: torch would tell each of them that no parameter was unused, which is as it should be
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from dataclasses import asdict

    from moembed.runs.distill import distill, is_distillation, load_distillation
    from moembed.runs.stages import load_stages
    from moembed.runs.train import load_recipe
    from moembed.runs.train import train as run
    from moembed.runs.train_reranker import is_reranking, load_reranking, train_reranker
    from moembed.runs.train_stages import train_stages
    from moembed.runs.training_run import has_stages

    if dry_run:
        from moembed.cli.dry_run import show_plan

        show_plan(recipe, overrides or [], overwrite, resume, json_)
        return
    result: Any
    if has_stages(recipe, overrides or []):
        result = train_stages(load_stages(recipe, overrides or []), resume=resume, overwrite=overwrite)
    elif is_reranking(recipe, overrides or []):
        plan = load_reranking(recipe, overrides or [])
        result = train_reranker(plan, resume=resume, overwrite=overwrite)
    elif is_distillation(recipe, overrides or []):
        result = distill(load_distillation(recipe, overrides or []), resume=resume, overwrite=overwrite)
    else:
        result = run(load_recipe(recipe, overrides or []), resume=resume, overwrite=overwrite)
    if json_:
        print_json(asdict(result))


def upcycle(
    model: Annotated[str, typer.Argument(help=f"A dense model. {MODEL}")],
    out: Annotated[Path, typer.Argument(help="Folder of the new model.")],
    experts: Annotated[
        int | None,
        typer.Option(
            min=1, max=4096, help="Experts of a layer that has them. Default: 8, with --tag as many as those."
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Experts per token. Default: 2, with --router tag 1.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Every how many layers one gets experts.")] = 2,
    published: Annotated[
        bool,
        typer.Option("--published", help="As Nomic Embed v2 did: raw router weights, dense biases dropped."),
    ] = False,
    init: Annotated[
        Literal["copy", "noise", "drop", "cluster"],
        typer.Option(help="How experts start: see docs/router.md. Only copies keep the vectors."),
    ] = "copy",
    router: Annotated[
        Literal["token_choice", "expert_choice", "centroid", "soft_merging", "tag", "hash"],
        typer.Option(help="Who decides which experts a token meets."),
    ] = "token_choice",
    tag: Annotated[
        list[str] | None,
        typer.Option(help="With --router tag: the tags of one group of experts, as in de,nl. Once a group."),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="With --init cluster: JSONL, Parquet or CSV of texts to look at.")
    ] = None,
    column: Annotated[str, typer.Option(help="Column of --texts that holds the text.")] = "text",
    seed: Seed = 0,
    allow_pickle: AllowPickle = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Turn a dense encoder into a Mixture of Experts; by default its vectors stay the same.

    Defaults are those of Nomic Embed v2; what others gave: --init records/experiment-upcycling.md,
    --experts, --top-k, --every records/experiment-routing.md, --router docs/do-experts-help.md.

    Example: `moembed upcycle minilm models/minilm-moe --experts 8 --top-k 2`
    """
    from moembed.config import validate
    from moembed.files import require_replaceable
    from moembed.folder.bases import base_name, read_base
    from moembed.report.card import write_card
    from moembed.runs.upcycle import upcycled
    from moembed.weights.upcycle import UpcycleConfig

    require_replaceable(out, overwrite)
    routes: dict[str, Any] = {"kind": router, "normalize": None if published else 1.0}
    if top_k or router != "soft_merging":  # which has none, and says so
        routes["top_k"] = top_k or (1 if router == "tag" else 2)
    routes |= {"tags": [group.split(",") for group in tag]} if tag else {}
    values = {"every": every, "bias": "shared" if published else "each", "router": routes, "seed": seed}
    values |= {"init": init} | ({"num_experts": experts} if experts else {})
    options = validate(UpcycleConfig, values)
    made = upcycled(read_base(model, allow_pickle=allow_pickle), options, texts, column)
    made.save_pretrained(out)
    write_card(out, str(out), base_name(model))
    facts = {"out": str(out), "parameters": made.num_parameters(), "active": made.num_parameters(active=True)}
    if json_:
        print_json(facts)
    else:
        print(f"{out}: {facts['parameters']:,} parameters, {facts['active']:,} active per token")


def inspect(
    model: Annotated[str, typer.Argument(help=MODEL)],
    texts: Annotated[
        Path | None, typer.Option(help="JSONL, Parquet or CSV: show the load and the words of every expert.")
    ] = None,
    column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    role: Annotated[
        Literal["document", "query", "none"], typer.Option(help="Whose prompt to use.")
    ] = "document",
    words: Annotated[
        int, typer.Option(min=0, help="With --texts: how many typical words to show of every expert.")
    ] = 8,
    allow_pickle: AllowPickle = False,
    json_: Json = False,
) -> None:
    """What a model is: layers, experts, prompts, parameters, bytes; a folder of config.json alone will do.

    Example: `moembed inspect runs/demo --texts corpus.jsonl`
    """
    from moembed.folder.bases import locate_base
    from moembed.runs.inspect import describe, expert_load

    facts = describe(locate_base(model, allow_pickle=allow_pickle), allow_pickle)
    load: dict[str, Any] = {}
    if texts is not None:
        loaded = load_model(model, "auto", allow_pickle)
        prompt = None if role == "none" else loaded.role_prompt(role)
        load = expert_load(loaded, texts, column, prompt, words, None if role == "none" else role)
    if json_:
        print_json(facts | ({"expert_load": load} if load else {}))
        return
    rows = [[key.replace("_", " "), _fact(value)] for key, value in facts.items()]
    print_table(str(model), ["", ""], rows)
    if load:
        _print_load(load)


def _print_load(load: dict[str, Any]) -> None:
    rows = [
        [
            str(layer["layer"]),
            f"{layer['entropy']:.3f}",
            f"{layer['top_mass']:.3f}",
            str(layer["dead_experts"]),
            f"{layer['expert_distance']:.4f}",
            " ".join(f"{share:6.1%}" for share in layer["load"]),
        ]
        for layer in load["layers"]
    ]
    cut = f" ({load['truncated']:,} cut: longer than the model reads)" if load["truncated"] else ""
    title = f"{load['texts']:,} texts{cut}, {load['tokens']:,} tokens"
    print_table(title, ["layer", "entropy", "top mass", "dead", "distance", "share of each expert"], rows)
    for layer in load["layers"]:
        if "experts" in layer:
            _print_words(layer)


def _print_words(layer: dict[str, Any]) -> None:
    rows = [
        [
            str(number),
            *(" ".join(entry["label"] for entry in expert[kind]) for kind in ("words", "pieces")),
        ]
        for number, expert in enumerate(layer["experts"])
    ]
    print_table(f"layer {layer['layer']}: what each expert sees more than its share of", _WORDS, rows)
    kinds = [
        [entry["label"], f"{entry['tokens']:,}", " ".join(f"{share:6.1%}" for share in entry["load"])]
        for entry in layer["kinds"]
    ]
    title = f"layer {layer['layer']}: where each kind of token goes"
    print_table(title, ["kind of token", "tokens", "share of each expert"], kinds)
    if (shared := layer["agreement"]) is not None:
        print(
            f"layer {layer['layer']}: two tokens of the same word have {shared['same_word']:.0%} of their "
            f"experts in common, two tokens of any words {shared['any_words']:.0%}"
        )


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_fact(item)}" for key, item in value.items()) or "none"
    return f"{value:,}" if type(value) is int else str(value)
