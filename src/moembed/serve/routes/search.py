"""Our own route: /search, of the index that the server was started with."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from moembed.encoding import View
from moembed.search.index import Hit
from moembed.serve.bodies import SearchBody, read_body
from moembed.serve.embedding import chosen_view, require_few, require_short
from moembed.serve.errors import RequestError
from moembed.serve.openapi import body_of, failures
from moembed.serve.records import record_of
from moembed.serve.refusals import long_texts
from moembed.serve.replies import json_reply
from moembed.serve.reranking import scored
from moembed.serve.searching import Question
from moembed.serve.state import State, state_of

router = APIRouter(tags=["Search"])

MOST_HITS = 10_000  # of a reply: each is a whole row of the index


class HitReply(BaseModel):
    id: str
    score: float
    row: dict[str, Any]


class SearchReply(BaseModel):
    """Of every query its hits, the best first; what was read, and how long it took."""

    results: list[list[HitReply]]
    tokens: int
    truncated_tokens: int
    seconds: dict[str, float]
    version: int


@router.post(
    "/search",
    summary="Search the index",
    openapi_extra=body_of(SearchBody),
    responses={
        200: {"model": SearchReply},
        **failures(400, 401, 404, 408, 413, 415, 424, 429, 500, 503, 504),
    },
)
async def search(request: Request) -> Response:
    body = await read_body(request, SearchBody)
    state = state_of(request)
    index = state.index
    if index is None:
        raise RequestError(404, "this server has no index: start it with --index DIR", code="no_index")
    queries, view = body.query, _view(state, body)
    require_few(state, queries, "query")
    require_short(state, state.model.embedder.prefix("query", None), queries, "query")
    if len(queries) * body.k > MOST_HITS:
        message = f"{len(queries)} queries with k {body.k} may be {len(queries) * body.k} hits"
        raise RequestError(413, f"{message}: ask for at most {MOST_HITS} in a request", param="k")
    record = record_of(request.scope)
    record.texts = len(queries)
    # the vectors of the queries, as long as those that they are compared with
    started = time.perf_counter()
    with long_texts("query", "start the server with --truncate truncate"):
        found = await state.model.embed(
            queries,
            role="query",
            tag=body.tag,
            truncate=state.settings.truncate,
            view=view,
            client=record.client,
        )
    record.tokens, record.truncated_tokens = found.tokens, sum(found.truncated)
    embedded = time.perf_counter()
    question = Question(body.k, body.where, body.hybrid, body.weight, view.dim)
    results, version = await index.find(found.array, queries, question)
    searched = time.perf_counter()
    seconds = {"embed": embedded - started, "search": searched - embedded}
    if body.rerank:
        column = index.text_column
        pairs = zip(queries, results, strict=True)
        results = [await _reranked(request, query, hits, column) for query, hits in pairs]
        seconds["rerank"] = time.perf_counter() - searched
    tokens = {"tokens": record.tokens, "truncated_tokens": record.truncated_tokens}
    return json_reply({"results": results, **tokens, "seconds": seconds, "version": version})


def _view(state: State, body: SearchBody) -> View:
    """The coordinates that are compared.

    Raises:
        RequestError: more than the index has, a size the model was not trained for, or a search that cannot
            be combined with fewer.
    """
    assert state.index is not None
    if body.weight is not None and not body.hybrid:
        raise RequestError(400, "weight is of hybrid search alone: send hybrid: true too", param="weight")
    if body.dimensions is None or body.dimensions == state.index.dim:
        return View(dim=state.index.dim)
    if body.dimensions > state.index.dim:
        message = f"dimensions {body.dimensions} is more than the {state.index.dim} of the index"
        raise RequestError(400, message, param="dimensions")
    if body.hybrid or body.where is not None:
        message = "fewer dimensions than those of the index go with neither where nor hybrid"
        raise RequestError(400, message, param="dimensions")
    return chosen_view(state, body.dimensions)


async def _reranked(request: Request, query: str, hits: list[Hit], column: str | None) -> list[Hit]:
    """The same hits by the reranker's score, which takes the place of the cosine."""
    texts = [str(hit.row.get(column or "") or "") for hit in hits]
    require_short(state_of(request), query, [""] * len(texts), "query")
    found = await scored(request, query, texts, truncate=True)
    order = np.argsort(-found.array, kind="stable").tolist()
    return [replace(hits[n], score=float(found.array[n])) for n in order]
