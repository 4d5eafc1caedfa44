"""/docs: what /openapi.json says, for people, without a script and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import Response

from moembed.serve.routes.page import PAGE_HEADERS

router = APIRouter()

_METHODS = ("get", "post")


@dataclass(frozen=True, slots=True)
class FieldFacts:
    """A field of a body: its type and default in words."""

    name: str
    kind: str
    default: str
    about: str


@dataclass(frozen=True, slots=True)
class Operation:
    method: str
    path: str
    summary: str
    fields: list[FieldFacts]
    answers: dict[str, str]


@router.get("/docs", include_in_schema=False)
async def reference(request: Request) -> Response:
    return Response(_page(request.app), media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)


@lru_cache(maxsize=1)
def _page(app: FastAPI) -> str:
    loader = PackageLoader("moembed.serve", "page")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    schema = app.openapi()
    groups: dict[str, list[Operation]] = {}
    for tag, operation in operations(schema):
        groups.setdefault(tag, []).append(operation)
    template = made.get_template("reference.html.j2")
    return template.render(version=app.version, about=app.description.split("\n\n"), groups=groups)


def operations(schema: Mapping[str, Any]) -> Iterator[tuple[str, Operation]]:
    """Every operation, under the name of its group."""
    kinds = schema["components"]["schemas"]
    for path, item in schema["paths"].items():
        for method in (method for method in _METHODS if method in item):
            found = item[method]
            answers = {status: answer["description"] for status, answer in found["responses"].items()}
            yield (
                found["tags"][0],
                Operation(method.upper(), path, found["summary"], list(_fields(found, kinds)), answers),
            )


def _fields(operation: Mapping[str, Any], kinds: Mapping[str, Any]) -> Iterator[FieldFacts]:
    if "requestBody" not in operation:
        return
    body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    needed = kinds[body].get("required", [])
    for name, schema in kinds[body]["properties"].items():
        default = schema.get("default")
        shown = "required" if name in needed else "" if default is None else str(default).lower()
        yield FieldFacts(name, in_words(schema, kinds), shown, schema.get("description", ""))


def in_words(schema: Mapping[str, Any], kinds: Mapping[str, Any]) -> str:
    """A JSON schema as a phrase: ``a text or a list of texts``."""
    if "$ref" in schema:
        inside = kinds[schema["$ref"].rpartition("/")[2]]
        members = [f"{name} ({in_words(part, kinds)})" for name, part in inside.get("properties", {}).items()]
        return f"an object of {', '.join(members)}"
    if "anyOf" in schema:
        parts = [part for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(in_words(part, kinds) for part in parts))
    if "enum" in schema:
        return ", ".join(f'"{value}"' for value in schema["enum"])
    if schema.get("type") == "array":
        return f"a list of {_PLURAL.get(schema['items'].get('type'), 'values')}"
    kind = _SINGULAR.get(schema.get("type", ""), "an object")
    bounds = [f"at least {schema['minimum']:g}"] if schema.get("minimum") else []
    bounds += [f"at most {schema['maximum']:g}"] if "maximum" in schema else []
    return ", ".join([kind, *bounds])


_SINGULAR = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}
_PLURAL = {"string": "texts", "integer": "whole numbers", "array": "lists of whole numbers"}
