"""Our own route: /space, the name of the vector space that a request's vectors would live in."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from moembed.encoding import FULL, View
from moembed.serve.bodies import SpaceBody, read_body
from moembed.serve.embedding import Purpose, chosen_prompt
from moembed.serve.openapi import body_of, failures
from moembed.serve.records import record_of
from moembed.serve.replies import json_reply
from moembed.serve.routes.openai import require_model
from moembed.serve.state import state_of

router = APIRouter(tags=["Spaces"])


class SpaceReply(BaseModel):
    """Vectors of equal names can be compared."""

    space: str


@router.post(
    "/space",
    summary="The name of a vector space",
    openapi_extra=body_of(SpaceBody),
    responses={200: {"model": SpaceReply}, **failures(400, 401, 404, 408, 413, 415, 429, 500, 503, 504)},
)
async def space(request: Request) -> Response:
    body = await read_body(request, SpaceBody)
    state = state_of(request)
    require_model(state, body.model)
    purpose = Purpose(body.input_type, body.prompt_name, body.prompt, body.tag)
    role, prompt = chosen_prompt(state, purpose)
    view = FULL if body.dimensions in (None, state.model.dim) else View(dim=body.dimensions)
    client = record_of(request.scope).client
    found = await state.model.embed([], role=role, prompt=prompt, tag=purpose.tag, view=view, client=client)
    return json_reply({"space": found.space})
