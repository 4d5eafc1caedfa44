"""What operators ask: whether the server is alive and ready, and its metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from moembed.serve.errors import RequestError
from moembed.serve.metrics import CONTENT_TYPE
from moembed.serve.openapi import OpenAIFailure, TeiFailure, failures
from moembed.serve.replies import json_reply
from moembed.serve.state import State, state_of

router = APIRouter(tags=["Operations"])


class HealthReply(BaseModel):
    status: str
    model: str


@router.get(
    "/health",
    summary="200 once the model is warm, before that 503",
    responses={200: {"model": HealthReply}, **failures(503, kind=TeiFailure)},
)
async def health(request: Request) -> Response:
    return _health(state_of(request))


@router.get(
    "/ready",
    summary="The same, in OpenAI's form",
    responses={200: {"model": HealthReply}, **failures(503, kind=OpenAIFailure)},
)
async def ready(request: Request) -> Response:
    return _health(state_of(request))


def _health(state: State) -> Response:
    if state.failure:
        raise RequestError(503, f"the model could not be made ready: {state.failure}")
    if not state.model.ready:
        raise RequestError(503, "the model is being loaded: ask again in a second", retry_after=1)
    return json_reply({"status": "ok", "model": state.model.name})


@router.get(
    "/metrics",
    summary="For Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **failures(401)},
)
async def metrics(request: Request) -> Response:
    return Response(state_of(request).metrics.exposition(), headers={"content-type": CONTENT_TYPE})
