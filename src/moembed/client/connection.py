"""Requests to a server: sent again while it is busy, and every failure one sentence."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moembed.types import UserError

if TYPE_CHECKING:
    import httpx2

KEY_VARIABLE = "MOEMBED_API_KEY"
_AGAIN = (429, 502, 503, 504)  # a server that is busy, or being replaced
_LONGEST_WAIT = 30.0  # seconds between two tries


def is_url(name: str) -> bool:
    """Whether the name of a model is the address of a server."""
    return name.startswith(("http://", "https://"))


class Connection:
    """To the server at ``url``, from any number of threads.

    Args:
        api_key: default: the environment variable MOEMBED_API_KEY.
        timeout: seconds to wait for one reply.
        retries: how often a request is sent again that met a busy server or a connection that broke.
        in_flight: requests on their way at one time.
    """

    def __init__(self, url: str, api_key: str | None, timeout: float, retries: int, in_flight: int) -> None:
        if not is_url(url):
            raise UserError(f"{url!r} is no address of a server: give one such as http://127.0.0.1:8000")
        if timeout <= 0 or retries < 0 or in_flight < 1:
            raise UserError("timeout must be above 0, retries at least 0 and in_flight at least 1")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._retries, self._timeout = retries, timeout
        key = (api_key or os.environ.get(KEY_VARIABLE) or "").strip()  # files end with a line's end
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise UserError(
                f"the key for {self.url} has a space or a character outside ASCII, which a bearer key "
                "cannot have"
            )
        self._http = _open(self.url, key, timeout, in_flight)

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, path: str, payload: Any = None) -> Any:
        """The JSON of a reply; a busy server, and a connection that breaks, are tried again."""
        import httpx2

        for attempt in range(self._retries + 1):
            wait: float | None = None
            try:
                reply = self._http.request(method, path, json=payload)
            except UnicodeEncodeError:
                raise UserError("a text is not valid Unicode: it holds half of a surrogate pair") from None
            except (TypeError, ValueError) as error:
                raise UserError(f"what {path} is asked for cannot be written as JSON: {error}") from None
            except httpx2.TimeoutException:
                raise UserError(
                    f"{self.url} did not answer {path} within {self._timeout:g} seconds"
                ) from None
            except httpx2.HTTPError as error:
                problem = f"no server answers at {self.url} ({error}): start one with `moembed serve MODEL`"
                if isinstance(error, httpx2.ConnectError) and payload is None:  # nothing was there at first
                    break
            else:
                if reply.is_success:
                    return self._json(reply)
                problem = f"{self.url} answered {path} with {reply.status_code}: {_sentence(reply)}"
                if reply.status_code == 401:
                    problem += f"; pass api_key, or set {KEY_VARIABLE}"
                if reply.has_redirect_location:
                    problem += f"; it points to {reply.headers['Location']}: give that server's address"
                if reply.status_code not in _AGAIN:
                    break
                wait = _seconds(reply.headers.get("Retry-After"))
            if attempt < self._retries:
                doubled = 0.25 * 2**attempt * random.uniform(0.75, 1.25)  # apart from other clients
                time.sleep(min(doubled if wait is None else wait, _LONGEST_WAIT))
        raise UserError(problem)

    def _json(self, reply: httpx2.Response) -> Any:
        try:
            return reply.json()
        except ValueError:
            raise UserError(f"{self.url} is no moembed server: it answered with no JSON") from None


def field(reply: Any, name: str, url: str) -> Any:
    """A field of a reply, which another kind of server would not have."""
    if not isinstance(reply, Mapping) or name not in reply:
        raise UserError(f"{url} is no moembed server of this version: its reply has no {name!r}")
    return reply[name]


def _open(url: str, api_key: str, timeout: float, in_flight: int) -> httpx2.Client:
    import httpx2

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    try:
        return httpx2.Client(
            base_url=url, headers=headers, limits=limits,
            timeout=httpx2.Timeout(timeout, connect=min(timeout, 5.0), pool=None),
        )  # fmt: skip
    except (httpx2.InvalidURL, UnicodeEncodeError) as error:
        raise UserError(f"{url!r} is no address of a server: {error}") from None


def _sentence(reply: httpx2.Response) -> str:
    """What the server complains of, in OpenAI's form, in TEI's, or in its own."""
    try:
        told = reply.json()
    except ValueError:
        return reply.text.strip()[:200] or "nothing more"
    error = told.get("error", told) if isinstance(told, Mapping) else told
    return str(error.get("message", error) if isinstance(error, Mapping) else error)


def _seconds(header: str | None) -> float | None:
    """Of a ``Retry-After``; a date, which no server of ours sends, is left to our own waiting."""
    try:
        return max(float(header), 0.0) if header is not None else None
    except ValueError:
        return None
