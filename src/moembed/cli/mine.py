"""`moembed filter` and `mine`: pairs that fit together, and hard negatives for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moembed.cli.options import Dtype, Json, Seed, SkipBadRows, load_encoder, when_interrupted
from moembed.console import print_json, print_table, progress_bar, say

if TYPE_CHECKING:
    from moembed.data.sources import SourceConfig
    from moembed.search.teacher import Teacher

Pairs = Annotated[str, typer.Argument(help="A file, folder or data set of pairs: JSONL, CSV or Parquet.")]
Out = Annotated[Path, typer.Option(help="A .jsonl, .jsonl.gz or .parquet file; run again to resume.")]
QueryColumn = Annotated[str, typer.Option(help="Column of the queries.")]
DocumentColumn = Annotated[str, typer.Option(help="Column of the documents.")]
TitleColumn = Annotated[str | None, typer.Option(help="Column that is put in front of the document.")]
PromptColumn = Annotated[str | None, typer.Option(help="Column that is put in front of the query.")]
Split = Annotated[str | None, typer.Option(help="Split of a layout that has several; default: train.")]
QueryPrompt = Annotated[
    str | None, typer.Option(help="Text put before every query; default: the model's own query prompt.")
]
DocumentPrompt = Annotated[
    str | None, typer.Option(help="Text put before every document; default: the model's own.")
]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache", help="Folder that keeps all vectors for the next run.")
]
OverwriteFile = Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")]
Model = "A model folder, a hub id, minilm, http://host:port, st:NAME (sentence-transformers), vectors:FOLDER."


def filter(
    pairs: Pairs,
    model: Annotated[str, typer.Option(help=Model)],
    out: Out,
    k: Annotated[int, typer.Option(min=1, help="The document must be among so many best of its query.")] = 2,
    block: Annotated[int, typer.Option(min=2, help="Pairs whose documents compete, at most.")] = 1_000_000,
    order: Annotated[
        Literal["random", "file"], typer.Option(help="How pairs are dealt to blocks.")
    ] = "random",
    by: Annotated[
        Literal["language", "source"] | None, typer.Option(help="Blocks that do not mix these.")
    ] = None,
    seed: Seed = 0,
    query_prompt: QueryPrompt = None,
    document_prompt: DocumentPrompt = None,
    query_column: QueryColumn = "query",
    document_column: DocumentColumn = "document",
    title_column: TitleColumn = None,
    prompt_column: PromptColumn = None,
    split: Split = None,
    language_column: Annotated[str, typer.Option(help="Column of the language.")] = "language",
    source_column: Annotated[str, typer.Option(help="Column of where a pair is from.")] = "source",
    skip_bad_rows: SkipBadRows = False,
    cache: CacheFolder = None,
    dtype: Dtype = "auto",
    overwrite: OverwriteFile = False,
    json_: Json = False,
) -> None:
    """Keep the pairs whose document a model finds among the k best for its query.

    Example: `moembed filter pairs.jsonl --model minilm --out kept.jsonl.gz --by language`
    """
    from moembed.config import validate
    from moembed.search.filter import FilterConfig, filter_pairs

    options = {"k": k, "block": block, "order": order, "seed": seed}
    config = validate(FilterConfig, options | {"by": "group" if by == "source" else by})
    columns = {
        "query": query_column, "document": document_column, "title": title_column, "prompt": prompt_column,
        "language": language_column, "group": source_column,
    }  # fmt: skip
    source = _source(pairs, split, skip_bad_rows, columns)
    teacher = _teacher(model, dtype, query_prompt, document_prompt)
    with when_interrupted(_kept(out)):
        summary = filter_pairs(
            source, out, teacher, config, cache=cache, overwrite=overwrite, progress=progress_bar
        )
    _say_truncated(teacher)
    _say(summary.notes)
    if summary.whole_blocks:
        say(f"note: {summary.whole_blocks} of {summary.blocks} blocks have {k} pairs or fewer: all stay")
    if json_:
        print_json({**asdict(summary), "path": str(out)})
        return
    dropped = summary.pairs - summary.kept
    print(f"{out}: {summary.kept:,} of {summary.pairs:,} pairs kept, {dropped:,} dropped")
    for title, shares in (("source", summary.sources), ("language", summary.languages)):
        if shares:
            cells = [[name, f"{n:,}", f"{rows:,}", f"{n / rows:.1%}"] for name, (n, rows) in shares.items()]
            print_table("", [title, "kept", "pairs", "share"], cells)
    shares_kept = [f"{share:.1%}" for share in summary.kept_at.values()]
    print_table("", ["k", *map(str, summary.kept_at)], [["would keep", *shares_kept]])


def mine(
    pairs: Pairs,
    teacher: Annotated[str, typer.Option(help=Model)],
    out: Out,
    corpus: Annotated[
        str | None,
        typer.Option(
            help="Where negatives come from, a file or folder; default: the documents of the pairs."
        ),
    ] = None,
    depth: Annotated[int, typer.Option(min=1, help="Nearest documents looked at.")] = 100,
    negatives: Annotated[int, typer.Option(min=1, help="Negatives per pair.")] = 20,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="relative:0.95, margin:0.05, max:0.8 (all must hold), or none. [default: relative:0.95]"
        ),
    ] = None,
    skip_top: Annotated[int, typer.Option(min=0, help="Leave out so many nearest.")] = 0,
    per_query_cap: Annotated[int | None, typer.Option(min=1, help="Rows of one query text, at most.")] = None,
    per_document_cap: Annotated[
        int | None, typer.Option(min=1, help="How often one document may serve as a negative.")
    ] = None,
    min_negatives: Annotated[int, typer.Option(min=0, help="Drop pairs with fewer.")] = 1,
    own_negatives: Annotated[
        Literal["keep", "replace"], typer.Option(help="What becomes of negatives that pairs have already.")
    ] = "keep",
    sample: Annotated[
        Literal["first", "random"], typer.Option(help="Which of those that qualify.")
    ] = "first",
    seed: Seed = 0,
    engine: Annotated[str, typer.Option(help="exact, or faiss:FACTORY[:PARAMETERS].")] = "exact",
    query_prompt: QueryPrompt = None,
    document_prompt: DocumentPrompt = None,
    query_column: QueryColumn = "query",
    document_column: DocumentColumn = "document",
    title_column: TitleColumn = None,
    prompt_column: PromptColumn = None,
    split: Split = None,
    corpus_column: Annotated[str, typer.Option(help="Column of the corpus that holds the text.")] = "text",
    skip_bad_rows: SkipBadRows = False,
    cache: CacheFolder = None,
    dtype: Dtype = "auto",
    overwrite: OverwriteFile = False,
    json_: Json = False,
) -> None:
    """Find hard negatives: documents near a query by a teacher, but less near than its positive.

    Example: `moembed mine pairs.jsonl --teacher minilm --out mined.jsonl --rule relative:0.95 --negatives 20`
    """
    from moembed.config import validate
    from moembed.search.mine import MineConfig
    from moembed.search.mine import mine as mine_negatives

    rules = ["relative:0.95"] if rule is None else [name for name in rule if name != "none"]
    config = validate(
        MineConfig,
        {
            "depth": depth, "negatives": negatives, "rules": rules, "skip_top": skip_top,
            "per_query_cap": per_query_cap, "per_document_cap": per_document_cap,
            "min_negatives": min_negatives, "sample": sample, "seed": seed, "engine": engine,
            "own_negatives": own_negatives,
        },
    )  # fmt: skip
    columns = {
        "query": query_column, "document": document_column, "title": title_column, "prompt": prompt_column,
    }  # fmt: skip
    source = _source(pairs, split, skip_bad_rows, columns)
    opened = _teacher(teacher, dtype, query_prompt, document_prompt)
    documents = None
    if corpus:
        from moembed.data.pairs import CorpusFile

        documents = _source(corpus, None, skip_bad_rows, {"document": corpus_column}, CorpusFile)
    with when_interrupted(_kept(out)):
        summary = mine_negatives(
            source, out, opened, config,
            corpus=documents, cache=cache, overwrite=overwrite, progress=progress_bar,
        )  # fmt: skip
    _say_truncated(opened)
    _say(summary.notes)
    if json_:
        print_json({**asdict(summary), "path": str(out)})
        return
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in summary.dropped.items() if count)
    print(
        f"{out}: {summary.written:,} of {summary.pairs:,} pairs, {summary.mean_negatives:.1f} negatives each "
        f"of {summary.documents:,} documents" + (f"; dropped: {dropped}" if dropped else "")
    )
    cells = [
        _quantiles("positives", summary.positive_scores),
        _quantiles("negatives", summary.negative_scores),
    ]
    print_table("", ["cosine at", *(f"{q:.0%}" for q in summary.positive_scores)], cells)


def _source(
    path: str,
    split: str | None,
    skip: bool,
    columns: Mapping[str, str | None],
    kind: type[SourceConfig] | None = None,
) -> SourceConfig:
    from moembed.config import validate
    from moembed.data.pairs import PairsFile

    bad_rows = "skip" if skip else "refuse"
    return validate(kind or PairsFile, {"path": path, "split": split, "bad_rows": bad_rows, **columns})


def _say(notes: Sequence[str]) -> None:
    for note in notes:
        say(f"note: {note}")


def _teacher(name: str, dtype: str, query: str | None, document: str | None) -> Teacher:
    from moembed.search.teacher import open_teacher

    return open_teacher(
        name, lambda model: load_encoder(model, dtype), {"query": query, "document": document}
    )


def _kept(out: Path) -> Callable[[], str]:
    return lambda: f"what is finished is kept in {out}.partial; run the same command again to go on"


def _say_truncated(teacher: Any) -> None:
    if truncated := getattr(teacher, "truncated", 0):
        say(f"note: {truncated:,} texts were longer than the model reads and were cut")


def _quantiles(what: str, scores: Mapping[float, float]) -> list[str]:
    return [what, *(f"{score:.3f}" for score in scores.values())]
