"""`moembed embed` and `moembed index`: folders of vectors, and indexes that are kept up to date."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from moembed.cli.codecs import CODEC, BitsPerDim, codec_name
from moembed.cli.options import ENCODER, AllowPickle, Dtype, Json, load_encoder, when_interrupted
from moembed.console import print_json, progress_bar, say
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.client.model import Client
    from moembed.embedder import Embedder
    from moembed.inference.static import StaticEmbedder
    from moembed.search.composed import ComposedEncoder
    from moembed.search.embed import EmbedConfig

Dim = Annotated[int | None, typer.Option(min=1, help="Keep the first dim coordinates.")]


def embed(
    source: Annotated[Path, typer.Argument(help="JSONL, Parquet or CSV.")],
    model: Annotated[str, typer.Option(help=ENCODER)],
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


class _WithDefault(TyperGroup):
    """`moembed index DOCS …` is `moembed index build DOCS …`: what is no command is a file of documents."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args = ["build", *args]
        return super().parse_args(ctx, args)


index = typer.Typer(
    cls=_WithDefault,
    no_args_is_help=True,
    help="""Make an index of documents and keep it up to date.

    `moembed index DOCS --model MODEL --out INDEX` is short for `moembed index build DOCS …`.

    Example: `moembed index corpus.jsonl --model runs/demo --out corpus.index`""",
)


@index.command("build")
def build(
    source: Annotated[Path, typer.Argument(help="JSONL, Parquet or CSV of documents.")],
    out: Annotated[Path, typer.Option(help="Folder of the index; the same command resumes, or updates it.")],
    model: Annotated[
        str | None, typer.Option(help=f"{ENCODER} Default: the one that made the index.")
    ] = None,
    column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    id_: Annotated[
        str | None, typer.Option("--id", help="Column of ids (_id or id), or none: ids made of the texts.")
    ] = None,
    delete_missing: Annotated[
        bool, typer.Option("--delete-missing", help="Delete rows that the file does not hold.")
    ] = False,
    engine: Annotated[
        Literal["exact", "qdrant-edge"] | None,
        typer.Option(
            help="What searches it: every row compared, or a graph of neighbours built now. "
            "Default: as before; of a new index exact."
        ),
    ] = None,
    dim: Dim = None,
    multivector: Annotated[
        str | None, typer.Option(help="How vectors of tokens are encoded: repetitions=20,k_sim=5,d_proj=16.")
    ] = None,
    codec: Annotated[str | None, typer.Option(help=f"Then store the vectors as {CODEC}")] = None,
    bits_per_dim: BitsPerDim = None,
    dtype: Dtype = "auto",
    allow_pickle: AllowPickle = False,
    json_: Json = False,
) -> None:
    """Index documents, or bring an index up to date: new and changed rows are embedded, others stay.

    Rows are told apart by their id. Other columns are kept for `moembed search --where`.

    Example: `moembed index build corpus.jsonl --model runs/demo --out corpus.index`
    """
    from moembed.search.embed import EmbedConfig
    from moembed.search.fde import FdeConfig
    from moembed.search.index_compress import require_codec
    from moembed.search.index_file import index_file
    from moembed.search.index_manifest import index_folder, read_manifest
    from moembed.search.index_model import model_name

    if bits_per_dim is not None and codec is None:
        raise UserError("--bits-per-dim is of a codec: name it with --codec, as in --codec bebr")
    coded = None if codec is None else codec_name(codec, bits_per_dim)
    if coded and engine not in (None, "exact"):
        raise UserError(
            f"--codec makes codes, which are searched exactly, and --engine is {engine}: take one"
        )
    out = index_folder(out)
    if coded:
        require_codec(out, coded, engine)
    made = read_manifest(out) if model is None else None
    if model is None:
        if made is None:
            raise UserError(f"{out} is not an index yet: name the model that is to make it with --model")
        dim = made["dim"] if dim is None and "multivector" not in made else dim
        model = model_name(out, made)
    embedder = load_encoder(model, dtype, allow_pickle)
    if coded and getattr(embedder, "per_token", False):
        raise UserError(f"--codec is for one vector of a row, and {model} makes one of every token")
    late = None if multivector is None else FdeConfig.parse(multivector, embedder.dim)
    config = _prompted(EmbedConfig(column=column, dim=dim, multivector=late), embedder, model)
    if made is not None:  # the path stays as it was written: one from the index to its model survives a move
        config = replace(config, model_path=made.get("model_path"))
    if engine == "qdrant-edge":
        say("when the rows are written the graph of qdrant-edge is built; the bar does not show that step")
    done = 0

    def kept() -> str:
        return f"the index {out} is as it was; run the same command again to go on"

    with when_interrupted(kept), progress_bar(f"indexing {source.name}", None) as advance:

        def show(rows: int) -> None:
            nonlocal done
            advance(rows - done)
            done = rows

        found = index_file(
            embedder, source, out, config, id_column=id_, delete_missing=delete_missing, engine=engine,
            progress=show,
        )  # fmt: skip
    note = "" if coded is None else f"; {_compressed(out, coded)}"
    if json_:
        print_json({**asdict(found), "path": str(found.path), "message": f"{found}{note}"})
        return
    print(f"{found}{note}")
    print(f'search it:  moembed search {out} "your question"')


def _compressed(out: Path, codec: str) -> str:
    """What became of the vectors of an index that was just committed."""
    from moembed.search.index_compress import compress_index
    from moembed.search.index_manifest import read_manifest

    try:
        return str(compress_index(out, codec))
    except UserError as error:
        if "codec" in (read_manifest(out) or {}):
            raise
        raise UserError(f"{error}; the index {out} was built, and its vectors stay float32") from None


@index.command("delete")
def delete(
    path: Annotated[Path, typer.Argument(help="Folder of the index.", metavar="INDEX")],
    ids: Annotated[list[str], typer.Argument(help="Ids of rows.", metavar="ID…")],
    json_: Json = False,
) -> None:
    """Delete rows by their ids; an id that the index does not hold is an error, and nothing is deleted.

    Example: `moembed index delete corpus.index doc-17 doc-18`
    """
    from moembed.search.index_file import delete_rows
    from moembed.search.index_manifest import index_folder

    deleted, left = delete_rows(index_folder(path), ids)
    message = f"{path}: {deleted} deleted, {left} left"
    print_json({"path": str(path), "deleted": deleted, "rows": left, "message": message}) if json_ else print(
        message
    )


@index.command("info")
def info(
    path: Annotated[Path, typer.Argument(help="Folder of the index.", metavar="INDEX")], json_: Json = False
) -> None:
    """What an index holds: rows, columns, version, model, size on disk.

    Example: `moembed index info corpus.index`
    """
    from moembed.search.index import Index
    from moembed.search.index_manifest import index_folder

    found = Index.open(index_folder(path)).info()
    if json_:
        print_json(found)
        return
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{column} ({kind})" for column, kind in value.items())
        print(f"{name.replace('_', ' '):<30}{'none' if value is None else value}")


def _embed(
    source: Path, model: str, out: Path, config: EmbedConfig, dtype: str, allow_pickle: bool
) -> dict[str, Any]:
    from moembed.search.embed import embed_file

    embedder = load_encoder(model, dtype, allow_pickle)
    config = _prompted(config, embedder, model)
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


def _prompted(
    config: EmbedConfig, embedder: Embedder | StaticEmbedder | Client | ComposedEncoder, model: str
) -> EmbedConfig:
    """With the prompt of its role, and where the model lies."""
    return replace(
        config,
        prompt=embedder.role_prefix(config.role),
        prompt_name=embedder.role_prompt(config.role) if config.role else None,
        model_path=str(Path(model).absolute()) if Path(model).exists() else model,
    )
