"""Our own route: /search, of the index that the server was started with."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from moembed.encoding import View
from moembed.serve.bodies import SearchBody, read_body
from moembed.serve.embedding import require_few
from moembed.serve.errors import RequestError
from moembed.serve.openapi import body_of, failures
from moembed.serve.records import record_of
from moembed.serve.replies import json_reply
from moembed.serve.reranking import scored
from moembed.serve.searching import find
from moembed.serve.state import state_of

router = APIRouter(tags=["Search"])


class Hit(BaseModel):
    id: str
    score: float
    row: dict[str, Any]


class SearchReply(BaseModel):
    """Of every query its hits, the best first; what was read, and how long it took."""

    results: list[list[Hit]]
    tokens: int
    truncated_tokens: int
    seconds: dict[str, float]


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
    queries = body.query
    require_few(state, queries, "query")
    record = record_of(request.scope)
    record.texts = len(queries)
    # the vectors of the queries, as long as those of the documents
    started = time.perf_counter()
    found = await state.model.embed(
        queries,
        role="query",
        truncate=state.settings.truncate,
        view=View(dim=index.dim),
        client=record.client,
    )
    record.tokens, record.truncated_tokens = found.tokens, sum(found.truncated)
    embedded = time.perf_counter()
    results = await find(state, index, found.array, body.k)
    searched = time.perf_counter()
    seconds = {"embed": embedded - started, "search": searched - embedded}
    if body.rerank:
        results = [
            await _reranked(request, query, hits) for query, hits in zip(queries, results, strict=True)
        ]
        seconds["rerank"] = time.perf_counter() - searched
    tokens = {"tokens": record.tokens, "truncated_tokens": record.truncated_tokens}
    return json_reply({"results": results, **tokens, "seconds": seconds})


async def _reranked(request: Request, query: str, hits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same hits by the reranker's score, which takes the place of the cosine."""
    index = state_of(request).index
    assert index is not None
    column = index.manifest.get("column")
    found = await scored(request, query, [str(hit["row"].get(column) or "") for hit in hits], truncate=True)
    order = np.argsort(-found.array, kind="stable").tolist()
    return [{**hits[n], "score": float(found.array[n])} for n in order]
