"""HTTP/1.1 as uvicorn speaks it, and an end for clients that send the head of a request byte by byte.

uvicorn has no time limit for the head: its keep-alive timer stops at the first byte of a request and starts
again when that is answered. So one starts here when a connection opens, or brings something while no request
is at work, and stops when a head is whole. It also ends a client that goes on sending a body that was already
refused. The time and size of a body have limits of their own, see `moembed.serve.limits`.

Clients that would rather speak HTTP/2, such as Java's, ask for it in the head of a request whose body follows
as ever (RFC 9110, 7.8: a server may ignore it). The parser takes that body for the other protocol and drops
it, so the wish is taken out of the head before.
"""

from __future__ import annotations

import asyncio
import re
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from moembed.serve.errors import RequestError, error_body

_MOST_HEAD_BYTES = 64 << 10
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


class HeadDeadline(HttpToolsProtocol):
    """``header_seconds`` for a head to be whole, and 64 KiB."""

    header_seconds = 10.0
    _timer: asyncio.TimerHandle | None = None
    _in_head = False
    _between = True  # requests
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(_without_upgrade(data) if self._between else data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD_BYTES:
                self._refuse(RequestError(431, "the head of the request is larger than 64 KiB"))
        at_work = self.cycle is not None and not self.cycle.response_complete
        if not at_work and not self.transport.is_closing():
            self._start()

    def on_message_begin(self) -> None:
        self._in_head, self._between, self._head_bytes = True, False, 0
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._between = True
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(RequestError(400, "this is no HTTP request that the server understands"))

    def _start(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.header_seconds, self._too_slow)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            seconds = f"{self.header_seconds:g} seconds"
            self._refuse(RequestError(408, f"the request did not arrive within {seconds}: send it faster"))

    def _refuse(self, error: RequestError) -> None:
        """Answer before there is a request, and close."""
        self._stop()
        status, body = error_body(error, "openai")
        if self.cycle is None or self.cycle.response_complete:
            head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
            self.transport.write(f"{head}\r\nconnection: close\r\n\r\n".encode("ascii") + body)
        self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """What begins with the head of a request, without its wish for another protocol."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"", head) + end + rest if end else data


def protocol(header_seconds: float) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn's ``http=``, with this time limit."""
    made = type("TimedProtocol", (HeadDeadline,), {"header_seconds": header_seconds})
    return cast("type[asyncio.Protocol]", made)
