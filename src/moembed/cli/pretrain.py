"""`moembed tokenizer, pretrain`: vocabularies and encoders, before there are any pairs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from moembed.cli.options import DryRun, Json, Overrides, Overwrite, Resume, SkipBadRows
from moembed.console import print_json, print_table, say
from moembed.types import UserError


def tokenizer(
    texts: Annotated[list[str], typer.Argument(help="JSONL, Parquet, CSV or .txt (a text per line).")],
    out: Annotated[Path, typer.Option(help="Folder of the new tokenizer, or with --base of the new model.")],
    kind: Annotated[
        Literal["unigram", "bpe", "wordpiece"] | None, typer.Option(help="Of a new one. [default: unigram]")
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(min=1, help="Pieces of a new one, special tokens included. [default: 32000]"),
    ] = None,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Lowercase every text first.")] = False,
    base: Annotated[
        str | None, typer.Option(help="Give this model the new tokenizer: a folder, a hub id, or minilm.")
    ] = None,
    extend: Annotated[
        int | None, typer.Option(min=0, help="Keep the base's tokenizer and add as many pieces to it.")
    ] = None,
    trim: Annotated[
        bool,
        typer.Option("--trim", help="Keep only the pieces of the base's tokenizer that the texts use."),
    ] = False,
    min_count: Annotated[
        int, typer.Option(min=1, help="With --trim: how often the texts use a piece that is kept.")
    ] = 1,
    column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    skip_bad_rows: SkipBadRows = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Learn a tokenizer on texts; with --base, a model that uses it.

    Word embeddings of pieces that both tokenizers have are kept, new ones start at the mean of their old
    pieces.

    Example: `moembed tokenizer texts.parquet --base minilm --extend 10000 --out models/minilm-more-words`

    Example: `moembed tokenizer texts.parquet --base me5-small --trim --out models/me5-mine`
    """
    from moembed.runs.tokenizer import TokenizerPlan, make_tokenizer

    if min_count > 1 and not trim:
        raise UserError("--min-count says which pieces --trim keeps: give --trim too")
    of_new = {"--kind": kind, "--vocab-size": vocab_size, "--lowercase": lowercase or None}
    if (trim or extend is not None) and (asked := [name for name, value in of_new.items() if value]):
        way = "--trim" if trim else "--extend"
        raise UserError(f"{asked[0]} is for a new tokenizer, and {way} keeps that of the base: leave it out")
    plan = TokenizerPlan(
        kind or "unigram", vocab_size or 32000, lowercase, base, extend, min_count if trim else None
    )
    facts = make_tokenizer(texts, out, plan, column, overwrite, skip_bad_rows)
    if json_:
        print_json(facts)
        return
    print_table(str(out), ["", ""], [[key.replace("_", " "), f"{value:,}"] for key, value in facts.items()])


def pretrain(
    recipe: Annotated[Path, typer.Argument(help="A YAML file such as recipes/mini/pretrain.yaml.")],
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Train an encoder to guess masked words: JSONL, Parquet, CSV or .txt, columns text and language.

    Example: `moembed pretrain recipes/mini/pretrain.yaml data=texts.parquet out=runs/base steps=200`
    """
    # several processes: torch would tell each of them that no parameter was unused, which is as it should be
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from dataclasses import asdict

    if dry_run:
        from moembed.cli.dry_run import show_pretraining

        show_pretraining(recipe, overrides or [], overwrite, resume, json_)
        return
    from moembed.runs.pretrain import load_pretraining
    from moembed.runs.pretrain import pretrain as run

    result = run(load_pretraining(recipe, overrides or []), resume=resume, overwrite=overwrite)
    if json_:
        facts = asdict(result)
        print_json(facts | facts.pop("held_out"))
        return
    columns = ["language", "loss before", "after", "accuracy before", "after"]
    if rows := _rows(result.held_out):
        print_table("held-out texts", columns, rows)
    say(f"go on with: moembed train recipes/finetune.yaml base={result.model}")


def _rows(held_out: dict[str, dict[str, float]]) -> list[list[str]]:
    kinds = ("_before", "", "_accuracy_before", "_accuracy")
    columns = [held_out.get(f"held_out{kind}", {}) for kind in kinds]
    return [
        [language, *(f"{column[language]:.3f}" for column in columns)]
        for language in columns[0]
        if all(language in column for column in columns)
    ]
