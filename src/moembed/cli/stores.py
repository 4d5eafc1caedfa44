"""`moembed index push`: an index into a vector database."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from moembed.cli.options import Json, when_interrupted
from moembed.console import print_json, progress_bar

DATABASES = (
    "qdrant://host:6333, qdrant+https://host:6333, qdrant:///a/folder, postgresql://user@host/database, "
    "lance:///a/folder or lance+s3://bucket/folder."
)


def push(
    index: Annotated[Path, typer.Argument(help="An index folder, or a run folder that holds one.")],
    to: Annotated[str, typer.Option(help=DATABASES)],
    name: Annotated[
        str | None, typer.Option(help="Collection or table; default: the name of the index folder.")
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove rows there that the index does not have.")
    ] = False,
    json_: Json = False,
) -> None:
    """Write an index into Qdrant, PostgreSQL with pgvector or LanceDB; it is then searched there as here.

    Rows that are there already, and the same, are left alone: run it again after every change. Passwords and
    keys come from libpq's variables (PGPASSWORD) and from QDRANT_API_KEY.

    Example: `moembed index push notes.index --to postgresql://me@localhost/notes`
    """
    from moembed.search.index import Index
    from moembed.search.index_manifest import index_folder
    from moembed.search.stores.push import default_name, open_store, push_index

    opened = Index.open(index_folder(index))
    with (
        closing(open_store(to, name or default_name(index))) as store,
        when_interrupted(lambda: "run the same command again: rows that are there already are left alone"),
        progress_bar("pushing", len(opened)) as advance,
    ):
        summary = push_index(opened, store, prune=prune, progress=advance)
    print_json({**asdict(summary), "message": str(summary)}) if json_ else print(summary)
