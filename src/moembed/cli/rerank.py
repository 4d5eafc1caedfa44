"""`moembed rerank`: the texts of a file in the order in which they answer a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moembed.cli.options import AllowPickle, Dtype, Json
from moembed.console import print_json, progress_bar, say
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.reranker import Reranker
    from moembed.search.index import Hit

RERANKER = "A cross-encoder: a folder, a run folder, or a hub id (owner/name or owner/name@revision)."
_BLOCK = 4096  # rows that are read at a time


def rerank(
    model: Annotated[str, typer.Argument(help=RERANKER)],
    source: Annotated[Path, typer.Argument(help="JSONL, Parquet or CSV of documents.")],
    query: Annotated[str, typer.Option(help="What the documents should answer.")],
    column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    k: Annotated[int | None, typer.Option("-k", min=1, help="How many to show. Default: all.")] = None,
    dtype: Dtype = "auto",
    allow_pickle: AllowPickle = False,
    json_: Json = False,
) -> None:
    """Score every text of a file together with the query, by a cross-encoder, and show the best first.

    With --json a hit is its `score` and its `row` of the file.

    Example: `moembed rerank runs/reranker candidates.jsonl --query "how are moles born?" -k 5`
    """
    from moembed.data.sources import iter_rows
    from moembed.search.embed import column_texts

    rows: list[dict[str, Any]] = []
    texts: list[str] = []
    for block in iter_rows(source, _BLOCK):
        texts += column_texts(block, column, source, len(rows))
        rows += block
    if not rows:
        raise UserError(f"{source} holds no rows to rank")
    ranked = rank_rows(load_reranker(model, dtype, allow_pickle), query, rows, texts)[:k]
    if json_:
        print_json([{"score": round(score, 6), "row": row} for score, row in ranked])
        return
    for score, row in ranked:
        rest = "  ".join(str(value) for name, value in row.items() if name != column)
        print(f"{score:8.4f}  {rest}".rstrip())
        lines = [line for line in str(row[column]).splitlines() if line.strip()][:3]
        print("".join(f"          {line[:100]}\n" for line in lines), end="")


def rerank_hits(
    name: str, query: str, hits: Sequence[Hit], column: str | None, allow_pickle: bool = False
) -> list[Hit]:
    """Hits of a search in the order, and with the scores, of a reranker.

    Raises:
        UserError: the index does not say which column holds the text, or a row lacks it.
    """
    if column is None or any(not isinstance(hit.row.get(column), str) for hit in hits):
        raise UserError("the index does not hold the texts it was made of, so there is nothing to rerank")
    model = load_reranker(name, "float32", allow_pickle)
    texts = [str(hit.row[column]) for hit in hits]
    order = rank_rows(model, query, [{"place": place} for place in range(len(hits))], texts)
    return [replace(hits[row["place"]], score=score) for score, row in order]


def load_reranker(name: str, dtype: str, allow_pickle: bool = False) -> Reranker:
    from moembed.machine import best_dtype
    from moembed.reranker import Reranker

    chosen = best_dtype() if dtype == "auto" else dtype
    return Reranker.from_pretrained(name, dtype=chosen, allow_pickle=allow_pickle)


def rank_rows(
    model: Reranker, query: str, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]
) -> list[tuple[float, dict[str, Any]]]:
    """Score and row, best first; what was cut is said."""
    with progress_bar("reranking", len(texts)) as advance:
        found = model.scored(query, texts, progress=advance)
    if cut := int((found.cut > 0).sum()):
        say(f"note: {cut} of {len(texts)} pairs of query and text were cut at {model.max_length} tokens")
    order = sorted(range(len(rows)), key=lambda i: -float(found.array[i]))
    return [(float(found.array[i]), dict(rows[i])) for i in order]
