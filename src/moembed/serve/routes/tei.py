"""The routes of TEI (text-embeddings-inference): /embed, /similarity, /tokenize, /rerank and /info.

Forms and statuses are those of its router/src/http/{types,server}.rs and docs/openapi.json.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from moembed import __version__
from moembed.prompts import split_prompt
from moembed.serve.bodies import (
    EmbedBody,
    RerankBody,
    SimilarityBody,
    SimilarityParameters,
    TokenizeBody,
    read_body,
)
from moembed.serve.embedding import (
    Purpose,
    chosen_prompt,
    default_tag,
    embed,
    require_few,
    require_short,
    tag_names,
)
from moembed.serve.errors import RequestError
from moembed.serve.openapi import TeiFailure, body_of, failures
from moembed.serve.records import record_of
from moembed.serve.refusals import refused
from moembed.serve.refusals import require_few as require_few_tokens
from moembed.serve.replies import json_reply
from moembed.serve.reranking import scored
from moembed.serve.state import EmbeddedTexts, State, Truncate, state_of

router = APIRouter(tags=["TEI"])

_WRONG = 422  # TEI's status for JSON with a wrong value
_ERRORS = failures(400, 401, 408, 413, 415, 422, 429, 500, 503, 504, kind=TeiFailure)
_NOT_SERVED = {
    "/embed_all": "vectors of tokens",
    "/embed_sparse": "sparse vectors",
    "/predict": "classes of texts",
    "/decode": "texts of token ids",
}


class Token(BaseModel):
    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Rank(BaseModel):
    index: int
    score: float
    text: str | None = None


class InfoReply(BaseModel):
    """TEI's, and beside it what our client must know of the vectors."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, dict[str, str]]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int | None
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    dimensions: list[int]
    any_dimension: bool
    prompts: dict[str, str]
    default_prompt: str | None
    tags: list[str]
    default_tag: str | None
    truncate: str
    space: str
    parameters: int
    active_parameters: int
    routes: dict[str, bool]


@router.post(
    "/embed",
    summary="Embed texts, a bare list of vectors",
    openapi_extra=body_of(EmbedBody),
    responses={200: {"model": list[list[float]]}, **_ERRORS},
)
async def embed_texts(request: Request) -> Response:
    body = await read_body(request, EmbedBody, _WRONG)
    state = state_of(request)
    if body.normalize is False:
        raise RequestError(_WRONG, "vectors here have length 1: leave normalize out", param="normalize")
    require_side(state, body.truncation_direction)
    started = time.perf_counter()
    found = await embed(
        request,
        body.inputs,
        Purpose(prompt_name=body.prompt_name, tag=body.tag),
        param="inputs",
        remedy="send truncate: true",
        truncate=_truncate(body.truncate),
        dimensions=body.dimensions,
    )
    vector_NM = np.ascontiguousarray(found.array, dtype=np.float32)
    return json_reply(vector_NM, headers=_headers(found, started))


@router.post(
    "/similarity",
    summary="Cosines of one text with others",
    openapi_extra=body_of(SimilarityBody),
    responses={200: {"model": list[float]}, **_ERRORS},
)
async def similarity(request: Request) -> Response:
    body = await read_body(request, SimilarityBody, _WRONG)
    state = state_of(request)
    asked = body.parameters or SimilarityParameters()
    require_side(state, asked.truncation_direction)
    started = time.perf_counter()
    found = await embed(
        request,
        [body.inputs.source_sentence, *body.inputs.sentences],
        Purpose(prompt_name=asked.prompt_name, tag=asked.tag),
        param="inputs",
        remedy="send parameters with truncate: true",
        truncate=_truncate(asked.truncate),
    )
    cosine_N = np.clip(found.array[1:] @ found.array[0], -1, 1).astype(np.float32)
    return json_reply(cosine_N, headers=_headers(found, started))


@router.post(
    "/tokenize",
    summary="Tokens of texts",
    openapi_extra=body_of(TokenizeBody),
    responses={200: {"model": list[list[Token]]}, **_ERRORS},
)
async def tokenize(request: Request) -> Response:
    body = await read_body(request, TokenizeBody, _WRONG)
    state = state_of(request)
    require_few(state, body.inputs, "inputs")
    _, prompt = chosen_prompt(state, Purpose(prompt_name=body.prompt_name, prompt=body.prompt))
    require_short(state, prompt or "", body.inputs, "inputs")
    record_of(request.scope).texts = len(body.inputs)
    with refused("prompt"):
        front, behind = split_prompt(prompt or "")
    texts = [front + text + behind for text in body.inputs]
    loop = asyncio.get_running_loop()
    return json_reply(
        await loop.run_in_executor(state.tokenizing, _tokens, state, texts, body.add_special_tokens)
    )


def _tokens(state: State, texts: list[str], special: bool) -> list[list[dict[str, Any]]]:
    """Every token with its place in the text, in characters; a special token stands nowhere."""
    found = []
    backend = state.model.embedder.tokenizer.backend
    encodings = backend.encode_batch(texts, add_special_tokens=special)
    # an entry of the reply is fifty times a token's share of the body
    require_few_tokens(sum(map(len, encodings)), state.settings.request_tokens)
    for text, encoding in zip(texts, encodings, strict=True):
        columns = (encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask)
        tokens = []
        for token, word, (start, stop), mark in zip(*columns, strict=True):
            place = {"start": None, "stop": None} if mark else {"start": start, "stop": stop}
            shown = word if mark else text[start:stop]
            tokens.append({"id": token, "text": shown, "special": bool(mark), **place})
        found.append(tokens)
    return found


@router.post(
    "/rerank",
    summary="Texts in the order in which they answer a query",
    openapi_extra=body_of(RerankBody),
    responses={200: {"model": list[Rank]}, **_ERRORS, **failures(424, kind=TeiFailure)},
)
async def rerank(request: Request) -> Response:
    body = await read_body(request, RerankBody, _WRONG)
    state = state_of(request)
    require_few(state, body.texts, "texts")
    require_side(state, body.truncation_direction)
    require_short(state, body.query, body.texts, "texts")
    record_of(request.scope).texts = len(body.texts)
    activation = "identity" if body.raw_scores else "sigmoid"
    found = await scored(request, body.query, body.texts, truncate=body.truncate, activation=activation)
    order = np.argsort(-found.array, kind="stable").tolist()
    ranks: list[dict[str, Any]] = [{"index": n, "score": float(found.array[n])} for n in order]
    if body.return_text:
        ranks = [{**rank, "text": body.texts[rank["index"]]} for rank in ranks]
    headers = {
        "x-compute-tokens": str(found.tokens),
        "x-truncated-texts": str(int((found.cut > 0).sum())),
        "x-truncated-tokens": str(int(found.cut.sum())),
    }
    return json_reply(ranks, headers=headers)


@router.get(
    "/info", summary="What is served", responses={200: {"model": InfoReply}, **failures(401, kind=TeiFailure)}
)
async def info(request: Request) -> Response:
    state = state_of(request)
    settings, model = state.settings, state.model
    embedder = model.embedder
    return json_reply(
        {
            "model_id": model.name,
            "model_sha": None,
            "model_dtype": embedder.dtype,
            "model_type": {"embedding": {"pooling": embedder.pooling.name}},
            "max_concurrent_requests": settings.max_texts,
            "max_input_length": model.max_length,
            "max_batch_tokens": model.limits.batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_texts,
            "auto_truncate": settings.truncate != "error",
            "tokenization_workers": 1,
            "version": __version__,
            "dimensions": list(model.dims),
            "any_dimension": settings.allow_any_dim,
            "prompts": embedder.prompts,
            "default_prompt": embedder.default_prompt_name,
            "tags": tag_names(embedder),
            "default_tag": default_tag(embedder),
            "truncate": settings.truncate,
            "space": state.space,
            "parameters": embedder.num_parameters(),
            "active_parameters": embedder.num_parameters(active=True),
            "routes": {"search": state.index is not None, "rerank": state.reranker is not None},
        }
    )


def require_side(state: State, side: Literal["Left", "Right", "left", "right"] | None) -> None:
    """Raise RequestError unless texts are cut on this side: it is the model's own, and no other is served."""
    own = state.model.embedder.tokenizer.truncation_side
    if side is not None and side.lower() != own:
        raise RequestError(
            _WRONG,
            f"this model cuts texts on the {own}: leave truncation_direction out",
            param="truncation_direction",
        )


def _truncate(wanted: bool | None) -> Truncate | None:
    return None if wanted is None else "truncate" if wanted else "error"


def _headers(found: EmbeddedTexts, started: float) -> dict[str, str]:
    """Beside a bare list: what was read and cut, and TEI's own names for tokens and milliseconds."""
    return {
        "x-compute-tokens": str(found.tokens),
        "x-total-time": str(round((time.perf_counter() - started) * 1000)),
        "x-truncated-texts": str(sum(map(bool, found.truncated))),
        "x-truncated-tokens": str(sum(found.truncated)),
        "x-space": found.space,
    }


def _refuse(path: str, what: str) -> None:
    @router.api_route(path, methods=["GET", "POST"], include_in_schema=False)
    async def not_served() -> Response:
        raise RequestError(404, f"TEI's {path} ({what}) is not among the routes of this server")


for _path, _what in _NOT_SERVED.items():
    _refuse(_path, _what)
