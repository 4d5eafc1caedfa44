"""`moembed search`: the rows of an index that are nearest to a question."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from moembed.cli.options import AllowPickle, Json, load_encoder
from moembed.cli.rerank import RERANKER, rerank_hits
from moembed.console import print_json, say


def search(
    index: Annotated[Path, typer.Argument(help="An index folder, or a run folder that holds one.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 5,
    where: Annotated[
        str | None,
        typer.Option(
            help="""Only rows that meet this, as 'lang = "de" and year >= 2010', or its JSON form."""
        ),
    ] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Rank by vectors and BM25 together.")] = False,
    weight: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="With --hybrid: how much vectors count, 0 to 1. Default: ranks are added."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model that made the index, if it lies elsewhere now, a student of it, or http://host:port."
        ),
    ] = None,
    rerank: Annotated[str | None, typer.Option(help=f"Order what was found by this. {RERANKER}")] = None,
    candidates: Annotated[int, typer.Option(min=1, help="With --rerank: how many it is given.")] = 50,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Compare all rows, where an approximate engine or MUVERA would choose some."
        ),
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Also say how the filter was met.")] = False,
    allow_pickle: AllowPickle = False,
    json_: Json = False,
) -> None:
    """Search by cosines, or of token vectors by MaxSim, among the rows that meet a condition.

    With --json a hit is its cosine (with --hybrid its joint score, with --rerank that of the reranker),
    `score`, and the columns of its row.
    Where a column is called score too, it stands in `row`: {"score": 0.71, "text": …, "row": {"score": 99}}.
    With --explain and --json the list is `hits`, beside `plan`: {"plan": {"filter": "pre", …}, "hits": […]}.

    Example: `moembed search runs/demo "read a parquet file lazily"`
    """
    from moembed.encoding import View
    from moembed.search.index import Index
    from moembed.search.index_bridge import bridge_of
    from moembed.search.index_manifest import index_folder
    from moembed.search.index_model import model_name, relation_used

    opened = Index.open(index_folder(index))
    opened.require_condition(where)  # a mistake in it is told before a model is loaded
    embedder = load_encoder(model or model_name(opened.path, opened.manifest), None, allow_pickle)
    view = View(dim=None if opened.fde else opened.dim)
    if model and bridge_of(opened.path, opened.manifest, embedder):
        say("note: the documents are codes of another model, which this one searches over a bridge")
    elif model and (note := relation_used(embedder, opened.manifest.get("role"), view, opened.space_id)):
        say(f"note: {note}")
    number = max(k, candidates) if rerank else k
    found = opened.search(
        [query], number, where=where, hybrid=hybrid, weight=weight, model=embedder, exact=exact
    )
    hits = found[0]
    if rerank:
        hits = rerank_hits(rerank, query, hits, opened.manifest.get("column"), allow_pickle)[:k]
    scores = [round(hit.score, 6 if hybrid or rerank else 4) for hit in hits]
    if json_:
        listed = [_as_json(score, hit.row) for score, hit in zip(scores, hits, strict=True)]
        print_json({"plan": found.plan.as_dict(), "hits": listed} if explain else listed)
        return
    if explain:
        say(str(found.plan))
    if not hits:
        say("no row of the index meets the condition" if where else "the index holds no rows")
    for score, hit in zip(scores, hits, strict=True):
        _print_hit(score, hit.row, opened.manifest.get("column"))


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
    print(f"{score:.3f}  {rest}".rstrip() if score >= 0.1 else f"{score:.4f}  {rest}".rstrip())
    text = str(row.get(column, "")) if column else ""
    lines = [line for line in text.splitlines() if line.strip()][:3]
    print("".join(f"         {line[:100]}\n" for line in lines), end="")
