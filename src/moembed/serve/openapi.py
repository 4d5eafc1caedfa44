"""What /openapi.json says beside what FastAPI finds by itself: bodies that we read, and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from moembed.serve.bodies import BODIES, Body

REF = "#/components/schemas/{model}"
_WHY = {
    400: "A field is wrong, or what it asks for does not exist.",
    401: "No key, or a wrong one.",
    404: "There is no such thing here.",
    408: "The body came too slowly.",
    413: "Too much for one request.",
    415: "The body is not JSON.",
    422: "A field is wrong.",
    424: "The server has no reranker.",
    429: "Too much waits: send it again after the seconds of Retry-After.",
    500: "The server failed.",
    503: "Not ready, or about to stop.",
    504: "No answer in time.",
}


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIFailure(BaseModel):
    """OpenAI's error object."""

    error: OpenAIError


class TeiFailure(BaseModel):
    """TEI's error object."""

    error: str
    error_type: str


def body_of(kind: type[Body]) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads this body itself."""
    schema = {"$ref": REF.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def failures(*statuses: int, kind: type[BaseModel] = OpenAIFailure) -> dict[int | str, dict[str, Any]]:
    """``responses`` of a route for these statuses."""
    return {status: {"model": kind, "description": _WHY[status]} for status in statuses}


def describe(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """``app.openapi`` with the bodies in it, made once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            _, bodies = models_json_schema([(kind, "validation") for kind in BODIES], ref_template=REF)
            made["components"]["schemas"] |= bodies["$defs"]
            for item in made["paths"].values():
                for operation in item.values():  # of a path that is any text, nothing can be wrong
                    if "HTTPValidationError" in str(operation["responses"].get("422")):
                        del operation["responses"]["422"]
            made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = made
        return app.openapi_schema

    return openapi
