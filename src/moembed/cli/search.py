"""`moembed embed, index, search`: texts to vectors, and finding them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moembed.cli.options import MODEL, AllowPickle, Dtype, Json, load_encoder, when_interrupted
from moembed.console import print_json, progress_bar
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.search.embed import EmbedConfig
    from moembed.search.index import Index

Dim = Annotated[int | None, typer.Option(min=1, help="Keep the first dim coordinates.")]


def embed(
    source: Annotated[Path, typer.Argument(help="JSONL, Parquet or CSV.")],
    model: Annotated[str, typer.Option(help=MODEL)],
    out: Annotated[Path, typer.Option(help="Folder of vectors; run the same command again to resume.")],
    column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    role: Annotated[
        Literal["document", "query", "none"], typer.Option(help="Whose prompt to use.")
    ] = "document",
    dim: Dim = None,
    dtype: Dtype = "auto",
    allow_pickle: AllowPickle = False,
    json_: Json = False,
) -> None:
    """Stream a file of texts to a folder of float32 vectors; resumable after any interruption.

    Example: `moembed embed corpus.parquet --model runs/demo --out vectors/corpus`
    """
    from moembed.search.embed import EmbedConfig

    config = EmbedConfig(column=column, role=None if role == "none" else role, dim=dim)
    summary = _embed(source, model, out, config, dtype, allow_pickle)
    print_json(summary) if json_ else print(summary["message"])


def index(
    source: Annotated[Path, typer.Argument(help="JSONL, Parquet or CSV of documents.")],
    model: Annotated[str, typer.Option(help=MODEL)],
    out: Annotated[Path, typer.Option(help="Folder of the index; run the same command again to resume.")],
    column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    dim: Dim = None,
    dtype: Dtype = "auto",
    allow_pickle: AllowPickle = False,
    json_: Json = False,
) -> None:
    """Build a searchable index of documents.

    Example: `moembed index corpus.jsonl --model runs/demo --out corpus.index`
    """
    from moembed.search.embed import EmbedConfig

    summary = _embed(source, model, out, EmbedConfig(column=column, dim=dim), dtype, allow_pickle)
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

    With --json a hit is its cosine, `score`, and the columns of its row. Where a column is called score too,
    it stands in `row`: {"score": 0.71, "text": …, "row": {"score": 99}}.

    Example: `moembed search runs/demo "read a parquet file lazily"`
    """
    from moembed.encoding import View
    from moembed.search.index import Index

    is_run = not (index / "manifest.json").exists() and (index / "index").is_dir()
    opened = Index.open(index / "index" if is_run else index)
    embedder = load_encoder(model or _model_of(opened), None, allow_pickle)
    role = opened.manifest.get("role")
    opened.require_space(embedder.space(role=role, view=View(dim=opened.dim)))
    hits = opened.search(embedder.encode_query([query], dim=opened.dim), k)
    rows = opened.rows(hits.index[0])
    scores = [round(float(score), 4) for score in hits.score[0]]
    if json_:
        print_json([_as_json(score, row) for score, row in zip(scores, rows, strict=True)])
        return
    for score, row in zip(scores, rows, strict=True):
        _print_hit(score, row, opened.manifest.get("column"))


def _model_of(index: Index) -> str:
    """Where the model that made the index lies."""
    made_by = index.manifest.get("model_path")
    if made_by is None:
        raise UserError(f"{index.path} does not say which model made it; name it with --model")
    if (index.path / made_by).exists():  # a path of another place is seen from the index, or absolute
        return str(index.path / made_by)
    is_path = Path(made_by).is_absolute() or made_by.startswith(".")
    if is_path and not Path(made_by).exists():
        raise UserError(
            f"the index {index.path} was made with the model {made_by}, which is not there any more: "
            "name the model with --model"
        )
    return str(made_by)


def _as_json(score: float, row: Mapping[str, Any]) -> dict[str, Any]:
    """The cosine and the columns; those whose names are ours stand in ``row``."""
    if "score" not in row:
        return {"score": score, **row}
    ours = {name: row[name] for name in ("score", "row") if name in row}
    return {"score": score, **{name: value for name, value in row.items() if name not in ours}, "row": ours}


def _print_hit(score: float, row: Mapping[str, Any], column: str | None) -> None:
    """The cosine and the other columns in one line, then the first lines of the text."""
    rest = "  ".join(
        f"{name}: {value}" if name == "score" else str(value) for name, value in row.items() if name != column
    )
    print(f"{score:.3f}  {rest}".rstrip())
    text = str(row.get(column, "")) if column else ""
    lines = [line for line in text.splitlines() if line.strip()][:3]
    print("".join(f"         {line[:100]}\n" for line in lines), end="")


def _embed(
    source: Path, model: str, out: Path, config: EmbedConfig, dtype: str, allow_pickle: bool
) -> dict[str, Any]:
    from dataclasses import replace

    from moembed.search.embed import embed_file

    embedder = load_encoder(model, dtype, allow_pickle)
    config = replace(
        config,
        prompt=embedder.role_prefix(config.role),
        prompt_name=embedder.role_prompt(config.role) if config.role else None,
        model_path=str(Path(model).absolute()) if Path(model).exists() else model,
    )
    done = 0

    def kept() -> str:
        start = f"{done:,} rows are kept in {out}" if done else "nothing new was written"
        return f"{start}; run the same command again to go on"

    with when_interrupted(kept), progress_bar(f"embedding {source.name}", None) as advance:

        def show(rows: int) -> None:
            nonlocal done
            advance(rows - done)
            done = rows

        summary = embed_file(embedder, source, out, config, show)
    return {**asdict(summary), "path": str(summary.path), "message": str(summary)}
