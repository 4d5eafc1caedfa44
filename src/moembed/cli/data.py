"""`moembed data inspect, split, dedup, overlap, collect`: looking at training data, cleaning, getting it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moembed.cli.collect import collect, open_tasks, task_texts
from moembed.cli.convert import convert
from moembed.cli.options import Json, Overrides, Overwrite, Seed, SkipBadRows
from moembed.console import print_json, print_table, progress_bar, say
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.data.sources import Source
    from moembed.data.summary import Lengths
    from moembed.types import Pair

_TASKS = "What `moembed evaluate --tasks` reads: BEIR-layout folders, or files of a task."
Recipe = Annotated[Path, typer.Argument(help="A YAML file of recipes/.")]


app = typer.Typer(
    help="Look at training data, divide it and clean it.", no_args_is_help=True, rich_markup_mode="markdown"
)
app.command()(convert)


@app.command()
def inspect(
    recipe: Recipe,
    overrides: Overrides = None,
    sample: Annotated[int, typer.Option(min=1, help="Pairs per source to measure lengths on.")] = 2000,
    json_: Json = False,
) -> None:
    """What a recipe will read: rows, languages, lengths in tokens, the mix, duplicates, a few pairs.

    Example: `moembed data inspect recipes/finetune.yaml data=pairs.jsonl`
    """
    from moembed.data.provenance import lacking, provenance
    from moembed.data.summary import summarize
    from moembed.runs.train import load_recipe, open_used
    from moembed.training.contrastive.task import num_train_rows

    plan = load_recipe(recipe, overrides or [])
    sources, weights, used = open_used(plan)
    if left_out := len(plan.data) - len(used):
        say(f"note: {left_out} sources have fewer pairs than a batch and are left out")
    lengths, sizes = _lengths(plan), [num_train_rows(source, plan) for source in sources]
    with progress_bar("comparing pairs", sum(map(len, sources))) as advance:
        facts = summarize(sources, weights, plan.batch_size, lengths, sample, progress=advance, sizes=sizes)
    facts = [fact | provenance(config) for fact, config in zip(facts, used, strict=True)]
    for fact in facts:
        for note in fact["notes"]:
            say(f"note: {fact['source']}: {note}")
    for sentence in lacking((fact["source"], own) for fact, own in zip(facts, used, strict=True)):
        say(f"note: {sentence}")
    if json_:
        print_json(facts)
    else:
        _print_summary(facts)


@app.command()
def split(
    pairs: Annotated[str, typer.Argument(help="Rows of any format and layout that sources have.")],
    out: Annotated[Path, typer.Option(help="Folder of train.jsonl, dev.jsonl and test.jsonl.")],
    dev: Annotated[
        float, typer.Option(min=0, help="Share of the rows, or from 1 on a number; 0 for none.")
    ] = 0.1,
    test: Annotated[float, typer.Option(min=0, help="Likewise.")] = 0.1,
    group: Annotated[
        str | None, typer.Option(help="Column whose equal values stay on one side, as author or page.")
    ] = None,
    near: Annotated[
        float,
        typer.Option(
            min=0.1, max=1, help="Texts this similar (Jaccard) stay on one side; 1: equal ones only."
        ),
    ] = 0.8,
    seed: Seed = 0,
    query: Annotated[str, typer.Option(help="Column of the query.")] = "query",
    document: Annotated[str, typer.Option(help="Column of the document.")] = "document",
    of_split: Annotated[
        str | None, typer.Option("--split", help="Split of a layout that has several.")
    ] = None,
    skip_bad_rows: SkipBadRows = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Divide pairs into train, dev and test, so that no text of one side stands on another.

    Rows that share a text, or have nearly equal ones, or the same group, stay together.

    Example: `moembed data split pairs.jsonl --out split --dev 500 --test 1000`
    """
    from dataclasses import asdict

    from moembed.data.pairs import SplitFile
    from moembed.data.split import split_file
    from moembed.files import require_replaceable

    require_replaceable(out, overwrite)
    source = SplitFile(
        path=pairs, query=query, document=document, group=group, split=of_split,
        bad_rows="skip" if skip_bad_rows else "refuse",
    )  # fmt: skip
    with progress_bar(f"reading {pairs}, twice", None) as advance:
        done = split_file(source, out, dev, test, None if near == 1 else near, seed, advance)
    for note in done.notes:
        say(f"note: {note}")
    if json_:
        print_json({"out": str(out)} | asdict(done))
    else:
        skipped = f"; {done.skipped:,} bad rows skipped" if done.skipped else ""
        print(
            f"{out}: {done.train:,} rows to train, {done.dev:,} dev, {done.test:,} test, from {done.rows:,} "
            f"rows in {done.blocks:,} blocks, the largest of {done.largest_block:,}{skipped}"
        )


@app.command()
def dedup(
    pairs: Annotated[str, typer.Argument(help="Rows of any format and layout that sources have.")],
    out: Annotated[Path, typer.Option(help="The clean file: .jsonl, .jsonl.gz or .jsonl.zst.")],
    by: Annotated[Literal["pair", "query", "document"], typer.Option(help="What must not repeat.")] = "pair",
    near: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Also drop texts this similar (Jaccard), as 0.8."),
    ] = None,
    query: Annotated[str, typer.Option(help="Column of the query.")] = "query",
    document: Annotated[str, typer.Option(help="Column of the document.")] = "document",
    split: Annotated[str | None, typer.Option(help="Split of a layout that has several.")] = None,
    skip_bad_rows: SkipBadRows = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    json_: Json = False,
) -> None:
    """Copy rows without repeated texts; the first of equal ones stays.

    Texts are equal if they are after Unicode NFKC, case folding and collapsing of white space.

    Example: `moembed data dedup pairs.jsonl --out clean.jsonl --near 0.8`
    """
    from moembed.data.dedup import dedup_file
    from moembed.data.pairs import DedupFile

    if out.exists() and not overwrite:
        raise UserError(f"{out} already exists: choose another name, or pass --overwrite")
    with progress_bar(f"reading {pairs}", None) as advance:
        source = DedupFile(
            path=pairs, query=query, document=document, split=split,
            bad_rows="skip" if skip_bad_rows else "refuse",
        )  # fmt: skip
        done = dedup_file(source, out, by, near, advance)
    for note in done.notes:
        say(f"note: {note}")
    if json_:
        counts = {"rows": done.rows, "kept": done.kept, "exact": done.exact, "near": done.near}
        print_json(counts | ({"skipped": done.skipped} if done.skipped else {}) | {"out": str(out)})
    else:
        skipped = f"; {done.skipped:,} bad rows skipped" if done.skipped else ""
        print(
            f"{out}: {done.kept:,} of {done.rows:,} rows; "
            f"{done.exact:,} exact and {done.near:,} near duplicates left out{skipped}"
        )


@app.command()
def overlap(
    recipe: Recipe,
    tasks: Annotated[list[Path], typer.Option("--tasks", help=_TASKS)],
    overrides: Overrides = None,
    ngram: Annotated[int, typer.Option(min=1, help="Words in a run.")] = 13,
    containment: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a task text's runs that make it contained.")
    ] = 0.5,
    json_: Json = False,
) -> None:
    """How many training texts equal or contain the queries and relevant passages of evaluation tasks.

    Of tasks without queries (sentence pairs, labelled texts) every text that is scored counts as both.

    Example: `moembed data overlap recipes/finetune.yaml data=pairs.jsonl --tasks data/scifact data/nfcorpus`
    """
    from moembed.data.overlap import TaskTexts, find_overlap
    from moembed.runs.train import load_recipe, open_sources

    loaded = open_tasks(tasks)
    for task in loaded:
        for note in task.notes:
            say(f"note: {task.name}: {note}")
    texts = {task.name: task_texts(task) for task in loaded}
    queries = TaskTexts({name: both[0] for name, both in texts.items()}, ngram, containment)
    documents = TaskTexts({name: both[1] for name, both in texts.items()}, ngram, containment)
    found = []
    for source in open_sources(load_recipe(recipe, overrides or []))[0]:
        for note in source.remarks():
            say(f"note: {source.name}: {note}")
        with progress_bar(source.name, len(source)) as advance:
            rows = find_overlap(_counted(source, advance), queries, documents)
        found += [{"source": source.name, "rows": len(source), **row} for row in rows]
    if json_:
        print_json(found)
    else:
        _print_overlap(found)


app.command()(collect)


def _lengths(plan: Any) -> dict[str, tuple[Lengths, int]]:
    """For each role, how many tokens its texts have, prompt and special tokens included, and the limit."""
    from moembed.embedder import Embedder
    from moembed.folder.bases import locate_base
    from moembed.folder.read import read_folder
    from moembed.training.contrastive.settings import fit_lengths

    model = Embedder(read_folder(locate_base(plan.base)))
    tokenizer = model.tokenizer
    if plan.prompts is not None:
        tokenizer.prompts = dict(plan.prompts)

    def counter(role: str) -> Lengths:
        prefix = tokenizer.prompt(model.role_prompt(role))
        return lambda texts: [len(row) for row in tokenizer.whole_rows(texts, prompt=prefix)]

    fitted, _, _ = fit_lengths(plan, model.encoder.spec.max_length, tokenizer.max_length)  # as training does
    limits = {"query": fitted.query_length, "document": fitted.document_length}
    return {role: (counter(role), limit) for role, limit in limits.items()}


def _counted(source: Source, advance: Callable[[int], None]) -> Iterator[Pair]:
    for pair in source:
        yield pair
        advance(1)


def _print_summary(facts: Sequence[dict[str, Any]]) -> None:
    print_table(
        "sources, and how often their pairs, queries and documents repeat earlier ones",
        ["", "pairs", "skipped", "batches per 1,000", "per epoch", "negatives", *facts[0]["duplicates"]],
        [
            [
                fact["source"],
                *_numbers(fact["rows"], fact["skipped"], fact["batches_per_1000"], fact["batches_per_epoch"]),
                f"{fact['negatives']:.1f}",
                *_numbers(*fact["duplicates"].values()),
            ]
            for fact in facts
        ],
    )
    print_table(
        "lengths in tokens, on a sample",
        ["", "", "mean", "p50", "p95", "max", "limit", "cut"],
        [
            [fact["source"], role, *map(str, list(some.values())[:-1]), f"{some['truncated']:.1%}"]
            for fact in facts
            for role, some in fact["tokens"].items()
        ],
    )
    print_table(
        "who may use them, as the recipe says",
        ["", "license", "origin"],
        [[fact["source"], fact["license"], fact["origin"]] for fact in facts],
    )
    for fact in facts:
        for kind in ("languages", "groups"):
            if set(fact[kind]) - {""}:
                counts = ", ".join(f"{name or 'none'} {count:,}" for name, count in fact[kind].items())
                print(f"{fact['source']}, {kind}: {counts}")
        for problem in fact["bad_shards"]:
            print(f"{fact['source']}, skipped: {problem}")
        for pair in fact["examples"]:
            print(f"{fact['source']}: {_short(pair['query'])} -> {_short(pair['document'])}")


def _print_overlap(found: Sequence[dict[str, Any]]) -> None:
    touched = [row for row in found if row["seen"]]
    if not touched:
        print("no training text equals or contains a query or relevant passage of these tasks")
        return
    print_table(
        "training texts that equal or contain texts of a task, and how many of the task's they are",
        ["", "task", "role", "pairs", "equal", "containing", "seen", "of"],
        [
            [
                row["source"],
                row["task"],
                row["role"],
                *_numbers(row["rows"], row["equal"], row["containing"], row["seen"], row["task_texts"]),
            ]
            for row in touched
        ],
    )
    for row in touched:
        example = row["examples"][0]
        print(f"{row['source']} and {row['task']}: {_short(example['training'])} | {_short(example['task'])}")


def _numbers(*values: int) -> list[str]:
    return [f"{value:,}" for value in values]


def _short(text: str) -> str:
    return textwrap.shorten(text, 100, placeholder=" …")
