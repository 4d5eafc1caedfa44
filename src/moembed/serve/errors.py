"""What is wrong with a request, in the form that every route answers with."""

from __future__ import annotations


class RequestError(Exception):
    """A request that is not answered with what it asked for.

    Args:
        status: of HTTP.
        message: one sentence for whoever sent it.
        code: the error's name for programs.
        param: the field of the request that is wrong.
        retry_after: seconds after which the same request may succeed.
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
        self.status, self.message = status, message
        self.code, self.param, self.retry_after = code, param, retry_after
