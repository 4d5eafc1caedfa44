"""What a request can fail with, in the forms that clients know: OpenAI's error object and TEI's.

OpenAI: ``{"error": {"message", "type", "param", "code"}}`` (platform.openai.com/docs/guides/error-codes).
TEI: ``{"error", "error_type"}`` (router/src/http/types.rs of text-embeddings-inference); its statuses differ,
see ``tei_status``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import orjson

Form = Literal["openai", "tei"]

TOO_LONG = "context_length_exceeded"  # OpenAI's code of a text longer than the model reads
TEI_PATHS = frozenset(
    ("/embed", "/embed_all", "/embed_sparse", "/rerank", "/predict", "/similarity", "/tokenize", "/decode",
     "/info", "/health")
)  # fmt: skip
_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    500: "internal_error",
    503: "unavailable",
    504: "timeout",
}
_LONGEST_MESSAGE = 500


class RequestError(Exception):
    """A request that is refused, or that failed: one plain sentence for whoever sent it.

    Args:
        status: of HTTP.
        message: what is wrong and what to do; it is sent to the client, so it says nothing of the inside.
        code: a word that programs can tell it by; default: by status.
        param: the field of the body that is wrong.
        retry_after: seconds after which it may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.retry_after = status, param, retry_after
        self.message = message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}…"
        self.code = code or _CODES.get(status)

    @property
    def type(self) -> str:
        """OpenAI's ``type``."""
        if self.status == 429:
            return "requests"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def headers(self) -> dict[str, str]:
        """Those that go with it: ``Retry-After`` in whole seconds, and how to authenticate."""
        found = {} if self.retry_after is None else {"retry-after": str(max(1, math.ceil(self.retry_after)))}
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def form_of(path: str) -> Form:
    """Whose form the errors of a path have."""
    return "tei" if path in TEI_PATHS else "openai"


def tei_status(error: RequestError) -> int:
    """TEI's status: a text that is too long is 413 there, as every failed validation of a text."""
    return 413 if error.code == TOO_LONG else error.status


def error_body(error: RequestError, form: Form) -> tuple[int, bytes]:
    """Status and JSON of a failure."""
    value: Mapping[str, Any]
    if form == "tei":
        value = {"error": error.message, "error_type": _tei_type(error.status)}
        return tei_status(error), orjson.dumps(value)
    value = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return error.status, orjson.dumps({"error": value})


def _tei_type(status: int) -> str:
    if status == 503:
        return "Unhealthy"
    if status == 429:
        return "Overloaded"
    return "Backend" if status >= 500 or status == 424 else "Validation"
