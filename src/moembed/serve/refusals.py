"""What a client did wrong, as the error that it is answered with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from moembed.serve.errors import RequestError
from moembed.types import UserError


@contextmanager
def refused(param: str) -> Iterator[None]:
    """A mistake of the client, in the words that the library has for it."""
    try:
        yield
    except UserError as error:
        raise RequestError(400, str(error), param=param) from error


def require_few(tokens: int, most: int | None) -> None:
    """Raise RequestError where a request has more than ``most`` tokens."""
    if most is not None and tokens > most:
        raise RequestError(
            413, f"the request has {tokens} tokens; send at most {most} in a request", param="input"
        )
