"""Reranking in Cohere's words, /v1/rerank and /v2/rerank, which Jina's and vLLM's clients speak as well."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from moembed.serve.bodies import RankBody, read_body
from moembed.serve.embedding import require_few, require_short
from moembed.serve.openapi import body_of, failures
from moembed.serve.records import record_of
from moembed.serve.refusals import require_named
from moembed.serve.replies import json_reply
from moembed.serve.reranking import scored
from moembed.serve.state import state_of

router = APIRouter(tags=["Cohere"])


class RankedDocument(BaseModel):
    text: str


class Ranked(BaseModel):
    index: int
    relevance_score: float
    document: RankedDocument | None = None


class RankUsage(BaseModel):
    total_tokens: int


class RankReply(BaseModel):
    """Cohere's ``id`` and ``results``, the others' ``model`` and ``usage``, and what was cut off."""

    id: str
    model: str
    results: list[Ranked]
    usage: RankUsage
    truncated_texts: int
    truncated_tokens: int


def _described(summary: str) -> dict[str, Any]:
    errors = failures(400, 401, 404, 408, 413, 415, 424, 429, 500, 503, 504)
    responses = {200: {"model": RankReply}, **errors}
    return {"summary": summary, "openapi_extra": body_of(RankBody), "responses": responses}


@router.post("/v1/rerank", **_described("Documents in the order in which they answer a query"))
@router.post("/v2/rerank", **_described("The same as /v1/rerank"))
async def rerank(request: Request) -> Response:
    """The best ``top_n`` documents by the logistic function of the reranker's score, 0 to 1."""
    body = await read_body(request, RankBody)
    state, record = state_of(request), record_of(request.scope)
    require_few(state, body.documents, "documents")
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    require_short(state, body.query, texts, "documents")
    if state.reranker is not None:
        require_named("reranker", body.model, state.settings.reranker_name, state.settings.reranker)
    record.texts = len(texts)
    found = await scored(request, body.query, texts, truncate=body.truncate, activation="sigmoid")
    order = np.argsort(-found.array, kind="stable")[: body.top_n].tolist()
    results: list[dict[str, Any]] = [{"index": n, "relevance_score": float(found.array[n])} for n in order]
    if body.return_documents:
        results = [{**result, "document": {"text": texts[result["index"]]}} for result in results]
    return json_reply(
        {
            "id": record.id,
            "model": state.settings.reranker_name,
            "results": results,
            "usage": {"total_tokens": found.tokens},
            "truncated_texts": int((found.cut > 0).sum()),
            "truncated_tokens": int(found.cut.sum()),
        }
    )
