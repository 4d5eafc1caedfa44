"""One process of the server: a model behind a batcher, the application, and uvicorn on a socket."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from moembed.serve.protocol import protocol
from moembed.serve.settings import ServeSettings
from moembed.types import UserError


def listen(settings: ServeSettings) -> socket.socket:
    """A listening socket on the address of the settings.

    Raises:
        UserError: the port is taken, or the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((settings.host, settings.port))
        found.listen(1024)
    except OSError as error:
        found.close()
        place = f"{settings.host}:{settings.port} ({error.strerror})"
        raise UserError(f"cannot listen on {place}: choose another --host or --port") from None
    found.set_inheritable(True)
    return found


def address_of(listener: socket.socket) -> str:
    """The URL of a listening socket, as a browser on this machine takes it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def uvicorn_server(app: Callable[..., object], settings: ServeSettings) -> uvicorn.Server:
    """uvicorn with our time limits; SIGTERM and Ctrl-C end it when what is at work is answered."""
    config = uvicorn.Config(
        app,
        http=protocol(settings.header_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        root_path="",
    )
    return uvicorn.Server(config)
