"""The application: routes, and around them keys, limits, logs and errors in the form of each interface."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from moembed import __version__
from moembed.search.index import Index
from moembed.serve import tracing
from moembed.serve.auth import Keys, RequireKey
from moembed.serve.errors import RequestError
from moembed.serve.limits import LimitRequests
from moembed.serve.logs import LogRequests, error_reply, where
from moembed.serve.metrics import Metrics
from moembed.serve.openapi import describe
from moembed.serve.paths import WithoutLastSlash, answer_head
from moembed.serve.routes import openai, operations, page, reference, rerank, search, space, tei
from moembed.serve.searching import ServedIndex
from moembed.serve.settings import ServeSettings
from moembed.serve.state import Model, Scorer, State

log = logging.getLogger("moembed.serve")
_ABOUT = """Embeddings of one sparse or dense text embedding model.

The routes under /v1 are OpenAI's, /v1/rerank and /v2/rerank Cohere's, the others TEI's
(text-embeddings-inference); /search and /inspect are our own, and at / there is a page for people. Where the
server has keys, send one as `Authorization: Bearer KEY`."""

_EXPOSED = (
    "x-request-id", "retry-after", "x-compute-tokens", "x-truncated-texts", "x-truncated-tokens", "x-space",
)  # fmt: skip


def create_app(
    settings: ServeSettings,
    model: Model,
    index: Index | None = None,
    reranker: Scorer | None = None,
    metrics: Metrics | None = None,
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The server as an ASGI application; its lifespan starts the model, and drains and closes it.

    Args:
        model: a `moembed.serve.served.ServedModel` that has not been started.
        metrics: those that the model's batcher writes to; default: fresh ones.
        on_failure: called when the model cannot be started, which /health then tells.
    """
    served_index = None if index is None else ServedIndex(index)
    state = State(settings, model, served_index, reranker, metrics or Metrics())
    app = FastAPI(
        title="moembed",
        version=__version__,
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        root_path=settings.root_path,
        lifespan=_lifespan(state, on_failure),
    )
    app.state.serving = state
    app.state.settings, app.state.model = settings, model
    app.state.index, app.state.reranker, app.state.metrics = served_index, reranker, state.metrics
    for routes in (openai, tei, rerank, search, space, operations, page, reference):
        app.include_router(routes.router)
        answer_head(app, routes.router)
    app.openapi = describe(app)  # type: ignore[method-assign]
    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_path)
    # the last one that is added is the outermost
    app.add_middleware(
        LimitRequests,
        max_body_bytes=settings.max_body_bytes,
        bodies_bytes=settings.bodies_bytes or 8 * settings.max_body_bytes,
        body_seconds=settings.body_seconds,
        request_seconds=settings.request_seconds,
    )
    if keys := Keys(settings.keys()):
        app.add_middleware(RequireKey, keys=keys, open_paths=("/metrics",) if settings.open_metrics else ())
    app.add_middleware(LogRequests, metrics=state.metrics)
    if settings.cors_origins:  # around what answers for failures: a page elsewhere must be able to read them
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),  # OpenAI's client sends many of its own; no cookie is looked at
            expose_headers=_EXPOSED,
        )
    app.add_middleware(tracing.TraceRequests)
    app.add_middleware(WithoutLastSlash, root_path=settings.root_path)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_reply(request.scope, error)


async def _refuse_path(request: Request, error: Exception) -> Response:
    """Of a path that is none, or a method that a path does not have."""
    assert isinstance(error, HTTPException)
    said = {
        404: "there is no such path here; GET /openapi.json lists those there are",
        405: f"this path does not take {request.method}; GET /openapi.json says what it takes",
    }
    refused = RequestError(error.status_code, said.get(error.status_code, str(error.detail)))
    reply = error_reply(request.scope, refused)
    reply.headers.update(error.headers or {})
    return reply


def _lifespan(
    state: State, on_failure: Callable[[], None]
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if traced := tracing.wanted():
            tracing.start_tracing()  # in this process: its thread would not live through a fork
        start = asyncio.ensure_future(_start(state, on_failure))
        try:
            if state.settings.workers > 1:
                await start  # the others answer meanwhile: this one takes no connection before it can
            yield
        finally:
            start.cancel()
            with suppress(asyncio.CancelledError):
                await start
            state.metrics.ready.set(0)
            await state.model.drain(state.settings.drain_seconds)
            await state.model.close()
            if state.index is not None:
                state.index.close()
            for threads in (state.threads, state.tokenizing):
                threads.shutdown(wait=False, cancel_futures=True)
            if traced:
                tracing.stop_tracing()

    return lifespan


async def _start(state: State, on_failure: Callable[[], None]) -> None:
    """Warm the model up while /health already answers."""
    model, settings = state.model, state.settings
    try:
        state.space = await asyncio.get_running_loop().run_in_executor(state.threads, model.embedder.space)
        await model.start()
    except Exception as error:
        state.failure = type(error).__name__
        log.error("the model could not be made ready", extra={"fields": where(error)})
        on_failure()
        return
    state.metrics.ready.set(1)
    state.metrics.info.labels(model.name, model.embedder.dtype, __version__).set(1)
    fields = {"model": model.name, "dtype": model.embedder.dtype, "port": settings.port}
    log.info("ready", extra={"fields": fields})
