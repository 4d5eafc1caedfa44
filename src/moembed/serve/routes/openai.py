"""OpenAI's routes: /v1/embeddings and /v1/models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from moembed.serve.bodies import EmbeddingsBody, read_body
from moembed.serve.embedding import Purpose, embed
from moembed.serve.openapi import body_of, failures
from moembed.serve.refusals import require_named
from moembed.serve.replies import embedding_rows, json_reply
from moembed.serve.state import State, state_of

router = APIRouter(tags=["OpenAI"])
_REMEDY = "send truncate: truncate to drop what is too much, or truncate: chunk for the mean of its pieces"


class EmbeddingRow(BaseModel):
    object: str
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(BaseModel):
    """OpenAI's, and beside it what was cut off, and the space the vectors live in."""

    object: str
    data: list[EmbeddingRow]
    model: str
    usage: Usage
    truncated_texts: int
    truncated_tokens: int
    space: str


class ModelCard(BaseModel):
    """OpenAI's, and beside it what a client must know of the vectors."""

    id: str
    object: str
    created: int
    owned_by: str
    dimensions: list[int]
    max_length: int
    prompts: list[str]


class ModelsReply(BaseModel):
    object: str
    data: list[ModelCard]


@router.post(
    "/v1/embeddings",
    summary="Embed texts",
    openapi_extra=body_of(EmbeddingsBody),
    responses={200: {"model": EmbeddingsReply}, **failures(400, 401, 404, 408, 413, 415, 429, 500, 503, 504)},
)
async def embeddings(request: Request) -> Response:
    body = await read_body(request, EmbeddingsBody)
    state = state_of(request)
    require_model(state, body.model)
    found = await embed(
        request,
        body.input,
        Purpose(body.input_type, body.prompt_name, body.prompt, body.tag),
        param="input",
        remedy=_REMEDY,
        truncate=body.truncate,
        dimensions=body.dimensions,
    )
    return json_reply(
        {
            "object": "list",
            "data": embedding_rows(found.array, body.encoding_format or "float"),
            "model": state.model.name,
            "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
            "truncated_texts": sum(map(bool, found.truncated)),
            "truncated_tokens": sum(found.truncated),
            "space": found.space,
        }
    )


@router.get(
    "/v1/models", summary="The served model", responses={200: {"model": ModelsReply}, **failures(401)}
)
async def models(request: Request) -> Response:
    return json_reply({"object": "list", "data": [_card(state_of(request))]})


@router.get(
    "/v1/models/{name:path}",
    summary="One model",
    responses={200: {"model": ModelCard}, **failures(401, 404)},
)
async def model(request: Request, name: str) -> Response:
    state = state_of(request)
    require_model(state, name)
    return json_reply(_card(state))


def require_model(state: State, name: str | None) -> None:
    """Raise RequestError unless this is what is served, by its name or as the server was started with it."""
    require_named("model", name, state.model.name, state.settings.model)


def _card(state: State) -> dict[str, Any]:
    served = state.model
    return {
        "id": served.name,
        "object": "model",
        "created": state.created,
        "owned_by": "moembed",
        "dimensions": list(served.dims),
        "max_length": served.max_length,
        "prompts": sorted(served.embedder.prompts),
    }
