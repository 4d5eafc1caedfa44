"""What a client did wrong, as the error that it is answered with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from moembed.serve.errors import TOO_LONG, RequestError
from moembed.types import UserError


@contextmanager
def refused(param: str) -> Iterator[None]:
    """A mistake of the client, in the words that the library has for it."""
    try:
        yield
    except UserError as error:
        raise RequestError(400, str(error), param=param) from error


@contextmanager
def long_texts(param: str, remedy: str) -> Iterator[None]:
    """Say which field a text that is too long is of, and what a request of this route can do about it."""
    try:
        yield
    except RequestError as error:
        if error.code != TOO_LONG or error.param != "input":
            raise
        message = f"{error.message}: shorten it, or {remedy}"
        raise RequestError(error.status, message, code=TOO_LONG, param=param) from None


def require_few(tokens: int, most: int | None) -> None:
    """Raise RequestError where a request has more than ``most`` tokens."""
    if most is not None and tokens > most:
        raise RequestError(
            413, f"the request has {tokens} tokens; send at most {most} in a request", param="input"
        )


def require_named(kind: str, asked: str | None, name: str, started_with: str | None) -> None:
    """Raise RequestError unless nothing is asked for by name, or what is served is."""
    if asked is not None and asked not in (name, started_with):
        raise RequestError(
            404,
            f"there is no {kind} {asked!r} here; this server has {name!r}",
            code="model_not_found",
            param="model",
        )
