"""`moembed synth`: training pairs for documents, written by a text generator."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moembed.cli.options import Dtype, Json, SkipBadRows, load_encoder, when_interrupted
from moembed.console import print_json, print_table, progress_bar, say
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.data.synth.generators import Generator
    from moembed.runs.synth import SynthSummary


def synth(
    documents: Annotated[
        str, typer.Argument(help="A file, folder or data set of documents: JSONL, CSV, Parquet or BEIR.")
    ],
    generator: Annotated[
        str,
        typer.Option(
            help="The address of an OpenAI-compatible endpoint, http://host:port/v1, or module:function."
        ),
    ],
    out: Annotated[Path, typer.Option(help="A .jsonl, .jsonl.gz or .jsonl.zst file; run again to resume.")],
    model: Annotated[str | None, typer.Option(help="The model of the endpoint.")] = None,
    key_variable: Annotated[
        str | None, typer.Option(help="The environment variable that holds the endpoint's key.")
    ] = None,
    queries: Annotated[int, typer.Option(min=0, max=100, help="Queries per document.")] = 3,
    paraphrases: Annotated[int, typer.Option(min=0, max=100, help="Paraphrases per document.")] = 0,
    hard_negatives: Annotated[int, typer.Option(min=0, max=100, help="Hard negatives per query.")] = 0,
    templates: Annotated[
        Path | None, typer.Option(help="YAML of what is asked; default: the built-in templates.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many documents alone.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Questions on their way at once.")] = 4,
    retries: Annotated[int, typer.Option(min=0, max=100, help="Tries more, of a question not answered.")] = 6,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for an answer.")] = 120.0,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Of the generator; default: its own.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Of the generator; default: its own.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; default: the generator's own.")
    ] = None,
    near: Annotated[
        float,
        typer.Option(min=0.1, max=1, help="Texts this similar (Jaccard) are one; 1: equal ones only."),
    ] = 0.9,
    check: Annotated[
        str | None,
        typer.Option(help="A model that must find the document of each query among the --top-k best."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Of --check.")] = 3,
    text_column: Annotated[
        str, typer.Option(help="Column of the text; a column title goes in front.")
    ] = "text",
    split: Annotated[str | None, typer.Option(help="Split of a layout that has several.")] = None,
    skip_bad_rows: SkipBadRows = False,
    answers: Annotated[
        Path | None, typer.Option(help="File that keeps all answers; default: OUT.answers.")
    ] = None,
    dtype: Dtype = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output file if it exists.")
    ] = False,
    json_: Json = False,
) -> None:
    """Write training pairs for documents: queries, paraphrases and hard negatives by a text generator.

    Example: `moembed synth corpus.jsonl --generator http://127.0.0.1:8080/v1 --model qwen --out pairs.jsonl`
    """
    from moembed.config import validate
    from moembed.data.synth.documents import Documents, DocumentsFile
    from moembed.data.synth.templates import load_templates
    from moembed.data.synth.writing import SynthConfig
    from moembed.runs.synth import RoundTrip, synthesize
    from moembed.search.teacher import open_teacher

    if out.exists() and not overwrite:
        raise UserError(f"{out} already exists: choose another name, or pass --overwrite")
    options = {
        "queries": queries, "paraphrases": paraphrases, "hard_negatives": hard_negatives, "near": near,
        "temperature": temperature, "seed": seed, "max_tokens": max_tokens,
    }  # fmt: skip
    config, asked = validate(SynthConfig, options), load_templates(templates)
    bad_rows = "skip" if skip_bad_rows else "refuse"
    source = validate(
        DocumentsFile, {"path": documents, "document": text_column, "split": split, "bad_rows": bad_rows}
    )
    trip = None
    if check:
        trip = RoundTrip(open_teacher(check, lambda name: load_encoder(name, dtype)), check, top_k)
    writes = _generator(generator, model, key_variable, (concurrency, retries, timeout), options)
    place = answers or out.with_name(f"{out.name}.answers")
    kept = f"every answer is kept in {place}; run the same command again to go on"
    try:
        with when_interrupted(lambda: kept):
            done = synthesize(
                Documents(source, limit), out, writes, config, asked,
                answers=answers, check=trip, progress=progress_bar,
            )  # fmt: skip
    finally:
        writes.close()
    for note in done.notes:
        say(f"note: {note}")
    if json_:
        print_json(done.to_json())
    else:
        _print(done)


def _generator(
    name: str, model: str | None, variable: str | None, manner: tuple[int, int, float],
    options: dict[str, Any],
) -> Generator:  # fmt: skip
    from moembed.client.connection import is_url
    from moembed.data.synth.endpoint import ChatEndpoint
    from moembed.data.synth.generators import CallableGenerator, is_callable_name

    if is_url(name):
        if model is None:
            raise UserError(f"{name} may have several models: name one with --model")
        key = os.environ.get(variable) if variable else None
        if variable and not key:
            raise UserError(f"the environment variable {variable}, which --key-variable names, is not set")
        at_once, retries, timeout = manner
        return ChatEndpoint(name, model, key, timeout=timeout, retries=retries, at_once=at_once)
    if not is_callable_name(name):
        raise UserError(f"{name!r} is no generator: give an address, http://…, or module:function")
    if model or variable:
        raise UserError("--model and --key-variable are for an endpoint; a function has neither")
    made = CallableGenerator(name)
    if ignored := [option for option in made.ignored if options[option] is not None]:
        raise UserError(f"{name} takes no {ignored[0]}: leave --{ignored[0].replace('_', '-')} out")
    return made


def _print(done: SynthSummary) -> None:
    left = f", {done.repeated:,} repeated" if done.repeated else ""
    left += f", {done.skipped:,} bad rows skipped" if done.skipped else ""
    tokens = f" ({done.tokens_in:,} tokens read, {done.tokens_out:,} written)" if done.tokens_in else ""
    print(f"{done.path}: {done.rows:,} pairs of {done.documents:,} documents{left}")
    print(f"{done.asked:,} questions asked{tokens}, {done.reused:,} answered before")
    rows = [
        [kind, f"{done.kept.get(kind, 0):,}", *_most(done.rejected.get(kind, {}))]
        for kind in dict.fromkeys([*done.kept, *done.rejected])
    ]
    print_table("", ["texts", "kept", "left out", "why"], rows)


def _most(reasons: dict[str, int]) -> tuple[str, str]:
    told = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
    return f"{sum(reasons.values()):,}", told
