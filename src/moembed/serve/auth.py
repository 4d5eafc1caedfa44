"""Bearer keys: which requests may pass."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from moembed.serve.errors import RequestError
from moembed.serve.records import header, path_of, record_of

# Told to everyone: whether the server lives, what routes servers of this version have, and the page, which
# asks for the key itself.
OPEN_PATHS = frozenset(("/", "/health", "/ready", "/docs", "/openapi.json"))
OPEN_FOLDER = "/page/"


class Keys:
    """Several keys, kept as digests; ``match`` takes as long for a wrong key as for a right one."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def match(self, given: str) -> bool:
        """Whether this is one of the keys. All are compared, byte by byte, whatever the first ones say."""
        digest = _digest(given)
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found


class RequireKey:
    """Refuse with 401 whatever comes without a key, but for ``OPEN_PATHS`` and the files of the page."""

    def __init__(self, app: ASGIApp, keys: Keys, open_paths: Iterable[str] = ()) -> None:
        self.app, self.keys = app, keys
        self.open = OPEN_PATHS | frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope):
            await self.app(scope, receive, send)
            return
        given = header(scope, b"authorization")
        if given is None:
            raise RequestError(401, "this server wants a key: send the header 'Authorization: Bearer KEY'")
        kind, _, key = given.partition(" ")
        if kind.lower() != "bearer" or not self.keys.match(key.strip()):
            raise RequestError(401, "the key in the header Authorization is not one of this server's keys")
        record_of(scope).client = _digest(key.strip()).hex()[:16]
        await self.app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path = path_of(scope)
        return path in self.open or path.startswith(OPEN_FOLDER)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
