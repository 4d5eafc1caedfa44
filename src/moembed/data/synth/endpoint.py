"""An OpenAI-compatible chat endpoint: sent again while it is busy, and every failure one sentence."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from moembed.console import say
from moembed.data.synth.generators import Answer, Question, RefusedError
from moembed.types import UserError

if TYPE_CHECKING:
    import httpx2

_AGAIN = (408, 409, 429, 500, 502, 503, 504, 529)  # busy, being replaced, overloaded
_THIS_ONE = (400, 413, 422)  # may be about this question alone: too long, say
_LONGEST_WAIT = 60.0  # seconds between two tries
_CHAT = "/chat/completions"


class ChatEndpoint:
    """``POST URL/chat/completions``, from any number of threads.

    Args:
        url: with or without ``/v1`` and ``/chat/completions``.
        model: what the endpoint calls it.
        api_key: sent as a bearer token.
        timeout: seconds to wait for one reply.
        retries: how often a question is sent again that met a busy endpoint or a broken connection.
        at_once: questions on their way at one time.
        backoff: seconds before the second try; they double from try to try.
        told: is given a sentence when the endpoint is busy for the first time.
    """

    def __init__(
        self, url: str, model: str, api_key: str | None = None, *, timeout: float = 120.0, retries: int = 6,
        at_once: int = 4, backoff: float = 0.5, told: Callable[[str], None] = say,
    ) -> None:  # fmt: skip
        import httpx2

        if not 0 < timeout < math.inf:
            raise UserError(f"a timeout of {timeout} seconds is none: give a number above 0")
        self._path, self.name = _address(url)
        self.model, self.at_once, self.again = model, at_once, 0
        self._retries, self._backoff, self._timeout, self._told = retries, backoff, timeout, told
        self._stopped, self._lock, self._reached = Event(), Lock(), False
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx2.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        try:
            self._http = httpx2.Client(
                headers=headers, limits=limits,
                timeout=httpx2.Timeout(timeout, connect=min(timeout, 10.0), pool=None),
            )  # fmt: skip
        except UnicodeEncodeError:
            raise UserError("the key is no key: it holds letters that no header can have") from None

    def answer(self, question: Question) -> Answer:
        payload = {
            "model": self.model,
            "messages": [
                *([{"role": "system", "content": question.system}] if question.system else []),
                {"role": "user", "content": question.prompt},
            ],
        }
        options = ("temperature", "seed", "max_tokens")
        payload |= {name: value for name in options if (value := getattr(question, name)) is not None}
        return _answer(self._post(payload), self.name, self.model)

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self._http.close()

    def _post(self, payload: dict[str, Any]) -> Any:
        import httpx2

        for attempt in range(self._retries + 1):
            wait: float | None = None
            try:
                reply = self._http.post(self._path, json=payload)
            except UnicodeEncodeError:
                raise RefusedError("the document holds half of a surrogate pair") from None
            except httpx2.TimeoutException:
                problem = f"{self.name} did not answer within {self._timeout:g} seconds"
            except httpx2.InvalidURL as error:
                raise UserError(f"{self.name} is no address of an endpoint: {error}") from None
            except httpx2.HTTPError as error:
                problem = f"no endpoint answers at {self.name} ({error})"
                if isinstance(error, httpx2.ConnectError) and not self._reached:  # nothing was there at first
                    raise UserError(f"{problem}: start it, or correct the address") from None
            else:
                self._reached = True
                if reply.is_success:
                    return _json(reply, self.name)
                problem = f"{self.name} answered with {reply.status_code}: {_sentence(reply)}"
                self._require_temporary(reply.status_code, problem)
                wait = _seconds(reply.headers.get("Retry-After"))
            if attempt < self._retries:
                self._wait(attempt, wait, problem)
        raise UserError(
            f"{problem}, {self._retries + 1} times in a row: wait, or ask less at once with --concurrency"
        )

    def _require_temporary(self, status: int, problem: str) -> None:
        if status in _THIS_ONE:
            raise RefusedError(problem)
        if status in (401, 403):
            raise UserError(
                f"{problem}; name the environment variable that holds the key with --key-variable"
            )
        if status not in _AGAIN:
            raise UserError(f"{problem}; check the address and the model ({self.model})")

    def _wait(self, attempt: int, asked: float | None, problem: str) -> None:
        doubled = self._backoff * 2**attempt * random.uniform(0.75, 1.25)  # apart from the other threads
        seconds = min(doubled if asked is None else asked, _LONGEST_WAIT)
        with self._lock:
            first, self.again = not self.again, self.again + 1
        if first:
            self._told(f"note: {problem}; such requests are sent again, the next in {seconds:.1f} seconds")
        if self._stopped.wait(seconds):
            raise UserError(f"stopped while waiting: {problem}")


def _address(url: str) -> tuple[str, str]:
    """Where to post, and the endpoint's name: without a user, a password or a query."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{url!r} is no address of an endpoint: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"{url!r} is no address of an endpoint: give one such as http://127.0.0.1:8080/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            "the address of an endpoint holds a user, a password or a query: give a key with --key-variable"
        )
    base = parts.path.rstrip("/").removesuffix(_CHAT) or "/v1"
    shown = f"[{host}]" if ":" in host else host
    name = f"{parts.scheme}://{shown}{f':{port}' if port else ''}{base}"
    return name + _CHAT, name


def _json(reply: httpx2.Response, name: str) -> Any:
    try:
        return reply.json()
    except ValueError:
        raise UserError(f"{name} is no chat endpoint: it answered with no JSON") from None


def _answer(reply: Any, name: str, model: str) -> Answer:
    try:
        choice = reply["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise UserError(f"{name} is no chat endpoint: its reply has no choices with a message") from None
    used = reply.get("usage") or {}
    counts = [used.get(key) for key in ("prompt_tokens", "completion_tokens")]
    read, written = (count if isinstance(count, int) else 0 for count in counts)
    finish = str(choice.get("finish_reason") or "")
    return Answer(
        text if isinstance(text, str) else "", str(reply.get("model") or model), finish, read, written
    )


def _sentence(reply: httpx2.Response) -> str:
    """What the endpoint complains of."""
    try:
        told = reply.json()
    except ValueError:
        return " ".join(reply.text.split())[:200] or "nothing more"
    error = told.get("error", told) if isinstance(told, Mapping) else told
    said = error.get("message", error) if isinstance(error, Mapping) else error
    return " ".join(str(said).split())[:300].rstrip(".")


def _seconds(header: str | None) -> float | None:
    """Of a ``Retry-After``, a number or a date; None where there is none that can be read."""
    if header is None:
        return None
    try:
        return max(float(header), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
