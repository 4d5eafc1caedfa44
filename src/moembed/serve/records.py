"""What is known of the request at hand: for logs, metrics and fairness. Never a word of its texts."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

_KEY = "moembed.request"
_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Scope = MutableMapping[str, Any]


@dataclass(slots=True)
class RequestRecord:
    """One request.

    Attributes:
        id: sent back as ``X-Request-Id``; the client's own, if it is a plain word.
        client: who asks: a digest of the key, else the address. Requests of one client share one turn.
        texts: how many it sent; ``tokens``: read of them; ``truncated_tokens``: cut off.
    """

    id: str
    client: str
    started: float = field(default_factory=time.perf_counter)
    texts: int = 0
    tokens: int = 0
    truncated_tokens: int = 0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def start_record(scope: Scope) -> RequestRecord:
    """The record of a request that has just come in."""
    given = header(scope, b"x-request-id")
    address = scope.get("client")
    record = RequestRecord(
        id=given if given and _PLAIN_ID.fullmatch(given) else uuid.uuid4().hex,
        client=str(address[0]) if address else "",
    )
    scope[_KEY] = record
    return record


def record_of(scope: Scope) -> RequestRecord:
    """The record of a request; a fresh one outside the server's middleware."""
    found = scope.get(_KEY)
    return found if isinstance(found, RequestRecord) else start_record(scope)


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of this lower-case name."""
    value = next((value for key, value in scope.get("headers", ()) if key == name), None)
    return None if value is None else value.decode("latin-1")


def path_of(scope: Scope) -> str:
    """The path as routes have it, whether or not a proxy left the path of this server in front."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def route_of(scope: Scope) -> str:
    """The route's own path, such as ``/v1/embeddings``; ``unmatched`` for whatever is none.

    So there are as many as there are routes, whatever clients ask for.
    """
    return getattr(scope.get("route"), "path", None) or "unmatched"
