"""`moembed train --dry-run`: the plan of a run as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moembed.console import print_json, print_table, say


def show_plan(recipe: Path, overrides: Sequence[str], overwrite: bool, resume: bool, as_json: bool) -> None:
    """Print what a recipe will do."""
    from moembed.runs.dry_run import dry_run, dry_run_reranker
    from moembed.runs.train import load_recipe
    from moembed.runs.train_reranker import is_reranking, load_reranking

    if is_reranking(recipe, overrides):
        plan = dry_run_reranker(load_reranking(recipe, overrides), overwrite, resume)
    else:
        plan = dry_run(load_recipe(recipe, overrides), overwrite, resume)
    if as_json:
        print_json(plan)
        return
    length = ", ".join(f"{_text(value)} {key.replace('_', ' ')}" for key, value in plan["length"].items())
    facts = {"task": plan["task"], "out": plan["out"], "model": plan["model"], "length": length}
    print_table("what this recipe will do", ["", ""], _rows(facts))
    print_table("the loss", [""], [[line] for line in plan["loss"]])
    sources = plan["sources"]
    columns = list(sources[0])
    print_table(
        "the sources",
        [c.replace("_", " ") for c in columns],
        [[_text(s[c]) for c in columns] for s in sources],
    )
    print_table("the first batch", ["", ""], _rows(plan["first_batch"]))
    if plan["learning_rate"]:
        unit = next(iter(plan["learning_rate"][0]))
        rates = [[_text(row[unit]), f"{row['rate']:.3g}"] for row in plan["learning_rate"]]
        print_table("the learning rate", [unit, "rate"], rates)
    else:
        say("the learning rate follows the clock after a warm-up in steps: it cannot be told before")
    groups = [[_text(value) for value in group.values()] for group in plan["optimizer"]]
    heads = ["parameters", "tensors", "learning rate", "weight decay", "first"]
    print_table("what is learned, and how fast (0: it stays as it is)", heads, groups)
    _print_memory(plan["memory"])
    print_table("settings that are not at their default", ["", ""], _rows(plan["settings"]))
    say("nothing was trained or written; without --dry-run the run starts")


def _print_memory(memory: Mapping[str, Any]) -> None:
    parts = ("weights", "gradients", "optimizer", "graph", "vectors", "total", "available")
    print_table("memory, estimated", ["", "MB"], [[part, f"{memory[part] / 1e6:,.0f}"] for part in parts])
    if memory["total"] > memory["available"]:
        say("note: this is more than there is: lower chunk_tokens, or graph_tokens where it is set")


def _rows(values: Mapping[str, Any]) -> list[list[str]]:
    return [[key.replace("_", " "), _text(value)] for key, value in values.items()]


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
