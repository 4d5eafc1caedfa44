"""Paths as clients write them: with a slash at the end, and asked for by HEAD."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send


class WithoutLastSlash:
    """Answer ``/v1/embeddings/`` as ``/v1/embeddings``: many clients lose their body or key in a redirect.

    The page at ``/``, also under ``root_path``, keeps its slash.
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if path.endswith("/") and path.removeprefix(self.root_path).strip("/"):
                scope["path"] = path.rstrip("/")
        await self.app(scope, receive, send)


def answer_head(app: FastAPI, router: APIRouter) -> None:
    """Let every route of ``router`` that takes GET take HEAD too (RFC 9110, 9.3.2).

    uvicorn leaves out the body of the answer.
    """
    for route in router.routes:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
