"""The web page at ``/``: its files, and what it asks of the server beside the routes that all clients use.

The files are data of the package and need no key; they hold nothing of the model. What they show they ask for
at ``/inspect`` and the other routes, with a key where the server has some.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from moembed.embedder import Embedder
from moembed.serve.bodies import InspectBody, read_body
from moembed.serve.embedding import Purpose, chosen_prompt, default_tag, require_short, tag_names
from moembed.serve.errors import RequestError
from moembed.serve.openapi import body_of, failures
from moembed.serve.records import record_of
from moembed.serve.replies import json_reply
from moembed.serve.state import State, state_of
from moembed.token_experts import token_experts
from moembed.types import UserError

router = APIRouter(tags=["Page"])

# Nothing but the page's own files is run or drawn, nothing is sent elsewhere, and no other page may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MOST_AT_ONCE = 8  # texts that are inspected, or wait for it: they pass by the queue of the batcher
PAGE_HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    content: bytes
    media_type: str
    etag: str


@lru_cache(maxsize=1)
def page_files() -> dict[str, PageFile]:
    """The files of the page by name, read once; only these names can be asked for."""
    found = {}
    for file in (files("moembed.serve") / "page").iterdir():
        kind = file.name.rpartition(".")[2]
        if kind in _MEDIA_TYPES:
            content = file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:32]
            found[file.name] = PageFile(content, _MEDIA_TYPES[kind], f'"{digest}"')
    return found


@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    return _reply(request, page_files()["index.html"])


@router.get("/page/{name}", include_in_schema=False)
async def page_file(request: Request, name: str) -> Response:
    if name not in page_files():
        raise RequestError(404, "the page has no such file")
    return _reply(request, page_files()[name])


def _reply(request: Request, file: PageFile) -> Response:
    headers = {**PAGE_HEADERS, "etag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


# ---- what the page asks ----------------------------------------------------------------------------------


class IndexFacts(BaseModel):
    """``column`` holds the texts; ``columns`` stand beside it, by name with what they hold."""

    rows: int
    dim: int
    column: str
    columns: dict[str, str]


class ModelFacts(BaseModel):
    """What is served. ``moe_layers`` counts from 0; ``experts`` is 0 of a dense model."""

    name: str
    layers: int
    moe_layers: list[int]
    experts: int
    parameters: int
    active_parameters: int
    dtype: str
    dim: int
    dims: list[int]
    any_dim: bool
    max_length: int
    prompts: list[str]
    tags: list[str]
    default_tag: str | None
    tags_are_roles: bool
    index: IndexFacts | None
    reranker: bool


class LayerExperts(BaseModel):
    """For every token its experts, the one of the largest weight first, and their weights."""

    layer: int
    num_experts: int
    experts: list[list[int]]
    weights: list[list[float]]


class InspectReply(BaseModel):
    """The tokens of a text, prompt and special ones included, and what each MoE layer did with them."""

    tokens: list[str]
    special: list[bool]
    truncated: bool
    layers: list[LayerExperts]


@router.get("/inspect", summary="What is served", responses={200: {"model": ModelFacts}, **failures(401)})
async def facts(request: Request) -> Response:
    state = state_of(request)
    embedder = state.model.embedder
    spec = embedder.encoder.spec
    parameters, active = _parameters(embedder)
    found = ModelFacts(
        name=state.model.name,
        layers=spec.num_layers,
        moe_layers=list(spec.moe_layers),
        experts=max((layer.moe.num_experts for layer in spec.layers if layer.moe), default=0),
        parameters=parameters,
        active_parameters=active,
        dtype=embedder.dtype,
        dim=state.model.dim,
        dims=sorted(state.model.dims, reverse=True),
        any_dim=state.settings.allow_any_dim,
        max_length=state.model.max_length,
        prompts=sorted(embedder.prompts),
        tags=tag_names(embedder),
        default_tag=default_tag(embedder),
        tags_are_roles=embedder.tags is not None and embedder.tags.by_role,
        index=_index_facts(state),
        reranker=state.reranker is not None,
    )
    return json_reply(found.model_dump())


def _index_facts(state: State) -> IndexFacts | None:
    if state.index is None:
        return None
    index, column = state.index.index, state.index.text_column or "text"
    columns = {name: kind for name, kind in index.columns.items() if name != column}
    return IndexFacts(rows=len(index), dim=index.dim, column=column, columns=columns)


@lru_cache(maxsize=1)
def _parameters(embedder: Embedder) -> tuple[int, int]:
    return embedder.num_parameters(), embedder.num_parameters(active=True)


@router.post(
    "/inspect",
    summary="Which experts every token of a text chose, layer by layer",
    openapi_extra=body_of(InspectBody),
    responses={200: {"model": InspectReply}, **failures(400, 401, 408, 413, 415, 429, 500, 503, 504)},
)
async def inspect(request: Request) -> Response:
    body, state = await read_body(request, InspectBody), state_of(request)
    role, prompt = chosen_prompt(state, Purpose(body.input_type, body.prompt_name))
    require_short(state, "", [body.text], "text")
    if not state.model.ready:
        raise RequestError(503, "the model is being loaded: ask again in a second", retry_after=1)
    if state.inspecting >= MOST_AT_ONCE:
        raise RequestError(429, f"{MOST_AT_ONCE} texts are being inspected already", retry_after=1)
    loop = asyncio.get_running_loop()
    state.inspecting += 1
    try:
        found = await loop.run_in_executor(
            state.threads,
            lambda: token_experts(state.model.embedder, body.text, role=role, prompt=prompt, tag=body.tag),
        )
    except UserError as error:
        raise RequestError(400, str(error), param="text") from None
    finally:
        state.inspecting -= 1
    record = record_of(request.scope)
    record.texts, record.tokens = 1, len(found.pieces)
    layers: list[dict[str, Any]] = [
        {
            "layer": layer.layer,
            "num_experts": layer.num_experts,
            "experts": layer.experts,
            "weights": [[round(weight, 4) for weight in token] for token in layer.weights],
        }
        for layer in found.layers
    ]
    return json_reply(
        {"tokens": found.pieces, "special": found.special, "truncated": found.truncated, "layers": layers}
    )
