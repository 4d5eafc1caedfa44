"""`moembed embed, index, search`: texts to vectors, and finding them again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from moembed.cli.options import MODEL, AllowPickle, Dtype, Json, load_model
from moembed.console import print_json, progress_bar
from moembed.types import UserError


def embed(
    source: Annotated[Path, typer.Argument(help="JSONL, Parquet or CSV.")],
    model: Annotated[str, typer.Option(help=MODEL)],
    out: Annotated[Path, typer.Option(help="Folder of vectors; run the same command again to resume.")],
    column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    role: Annotated[
        Literal["document", "query", "none"], typer.Option(help="Whose prompt to use.")
    ] = "document",
    dim: Annotated[int | None, typer.Option(help="Keep the first dim coordinates.")] = None,
    dtype: Dtype = "auto",
    allow_pickle: AllowPickle = False,
    json_: Json = False,
) -> None:
    """Stream a file of texts to a folder of float32 vectors; resumable after any interruption.

    Example: `moembed embed corpus.parquet --model runs/demo --out vectors/corpus`
    """
    summary = _embed(source, model, out, column, role, dim, dtype, allow_pickle)
    print_json(summary) if json_ else print(summary["message"])


def index(
    source: Annotated[Path, typer.Argument(help="JSONL, Parquet or CSV of documents.")],
    model: Annotated[str, typer.Option(help=MODEL)],
    out: Annotated[Path, typer.Option(help="Folder of the index; run the same command again to resume.")],
    column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    dim: Annotated[int | None, typer.Option(help="Keep the first dim coordinates.")] = None,
    dtype: Dtype = "auto",
    allow_pickle: AllowPickle = False,
    json_: Json = False,
) -> None:
    """Build a searchable index of documents.

    Example: `moembed index corpus.jsonl --model runs/demo --out corpus.index`
    """
    summary = _embed(source, model, out, column, "document", dim, dtype, allow_pickle)
    if json_:
        print_json(summary)
        return
    print(summary["message"])
    print(f'search it:  moembed search {out} "your question"')


def search(
    index: Annotated[Path, typer.Argument(help="An index folder, or a run folder that holds one.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 5,
    model: Annotated[str | None, typer.Option(help="Default: the model that made the index.")] = None,
    allow_pickle: AllowPickle = False,
    json_: Json = False,
) -> None:
    """Exact cosine search with the model that made the index.

    Example: `moembed search runs/demo "read a parquet file lazily"`
    """
    from moembed.search.index import Index

    folder = (
        index if (index / "manifest.json").exists() or not (index / "index").is_dir() else index / "index"
    )
    opened = Index.open(folder)
    made_by = opened.manifest.get("model_path")
    if model is None and made_by is None:
        raise UserError(f"{folder} does not say which model made it; name it with --model")
    beside = folder / str(made_by)
    name = model or (str(beside) if beside.exists() else str(made_by))
    embedder = load_model(name, "float32", allow_pickle)
    role = opened.manifest["role"]
    opened.require_space(embedder.space_id(embedder.role_prompt(role) if role else None, opened.dim))
    hits = opened.search(embedder.encode_query([query], dim=opened.dim), k)
    rows = opened.rows(hits.index[0])
    found = [{"score": round(float(s), 4), **row} for s, row in zip(hits.score[0], rows, strict=True)]
    if json_:
        print_json(found)
        return
    column = opened.manifest["column"]
    for hit in found:
        rest = "  ".join(str(value) for key, value in hit.items() if key not in ("score", column))
        print(f"{hit['score']:.3f}  {rest}".rstrip())
        lines = [line for line in str(hit[column]).splitlines() if line.strip()][:3]
        print("".join(f"         {line[:100]}\n" for line in lines), end="")


def _embed(
    source: Path,
    model: str,
    out: Path,
    column: str,
    role: str,
    dim: int | None,
    dtype: str,
    allow_pickle: bool,
) -> dict[str, Any]:
    from dataclasses import asdict

    from moembed.search.embed import embed_file

    embedder = load_model(model, dtype, allow_pickle)
    chosen: Any = None if role == "none" else role
    with progress_bar(f"embedding {source.name}", None) as advance:
        done = 0

        def show(rows: int) -> None:
            nonlocal done
            advance(rows - done)
            done = rows

        summary = embed_file(
            embedder, source, out, column=column, role=chosen, dim=dim, model_path=model, progress=show,
            prompt_name=embedder.role_prompt(chosen) if chosen else None,
        )  # fmt: skip
    return {**asdict(summary), "path": str(summary.path), "message": str(summary)}
