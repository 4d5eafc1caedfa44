"""`moembed train --dry-run` and `moembed pretrain --dry-run`: the plan of a run as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moembed.console import print_json, print_table, say


def show_plan(recipe: Path, overrides: Sequence[str], overwrite: bool, resume: bool, as_json: bool) -> None:
    """Print what a recipe will do."""
    from moembed.runs.distill import is_distillation, load_distillation
    from moembed.runs.dry_run import dry_run, dry_run_reranker
    from moembed.runs.stage_plans import dry_run_stages
    from moembed.runs.stages import load_stages
    from moembed.runs.text_plans import dry_run_distillation
    from moembed.runs.train import load_recipe
    from moembed.runs.train_reranker import is_reranking, load_reranking
    from moembed.runs.training_run import has_stages

    if has_stages(recipe, overrides):
        plans = dry_run_stages(load_stages(recipe, overrides), overwrite, resume)
        if as_json:
            print_json({"stages": plans})
            return
        for number, plan in enumerate(plans, 1):
            print(f"stage {number} of {len(plans)}: {plan['stage']}")
            _print_plan(plan)
        say("nothing was trained or written; without --dry-run the run starts")
        return
    if is_reranking(recipe, overrides):
        plan = dry_run_reranker(load_reranking(recipe, overrides), overwrite, resume)
    elif is_distillation(recipe, overrides):
        plan = dry_run_distillation(load_distillation(recipe, overrides), overwrite, resume)
    else:
        plan = dry_run(load_recipe(recipe, overrides), overwrite, resume)
    _show(plan, as_json)


def show_pretraining(
    recipe: Path, overrides: Sequence[str], overwrite: bool, resume: bool, as_json: bool
) -> None:
    """The same for `moembed pretrain`."""
    from moembed.runs.pretrain import load_pretraining
    from moembed.runs.text_plans import dry_run_pretraining

    _show(dry_run_pretraining(load_pretraining(recipe, overrides), overwrite, resume), as_json)


def _show(plan: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    _print_plan(plan)
    say("nothing was trained or written; without --dry-run the run starts")


def _print_plan(plan: Mapping[str, Any]) -> None:
    """The parts that a plan has: those of a merge, of texts and of pairs differ."""
    length = ", ".join(f"{_text(value)} {key.replace('_', ' ')}" for key, value in plan["length"].items())
    facts = {"task": plan["task"], "out": plan["out"], "model": plan["model"], "length": length}
    print_table("what this recipe will do", ["", ""], _rows(facts))
    if plan["loss"]:
        print_table("the loss", [""], [[line] for line in plan["loss"]])
    if sources := plan["sources"]:
        columns = list(sources[0])
        print_table(
            "the sources",
            [c.replace("_", " ") for c in columns],
            [[_text(s[c]) for c in columns] for s in sources],
        )
    if "first_batch" in plan:
        print_table("the first batch", ["", ""], _rows(plan["first_batch"]))
    if "learning_rate" in plan:
        _print_rates(plan["learning_rate"])
    if "optimizer" in plan:
        groups = [[_text(value) for value in group.values()] for group in plan["optimizer"]]
        heads = ["parameters", "tensors", "learning rate", "weight decay", "first"]
        print_table("what is learned, and how fast (0: it stays as it is)", heads, groups)
    if "memory" in plan:
        _print_memory(plan["memory"])
    print_table("settings that are not at their default", ["", ""], _rows(plan["settings"]))


def _print_rates(rates: Sequence[Mapping[str, float]]) -> None:
    if not rates:
        say("the learning rate follows the clock after a warm-up in steps: it cannot be told before")
        return
    unit = next(iter(rates[0]))
    rows = [[_text(row[unit]), f"{row['rate']:.3g}"] for row in rates]
    print_table("the learning rate", [unit, "rate"], rows)


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
