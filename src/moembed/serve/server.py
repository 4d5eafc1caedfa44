"""The processes of a server: one, or several that share a socket and the memory of a model.

Each has a batcher and an application of its own, and uvicorn on the socket. Nothing is computed before the
processes are forked, see `moembed.serve.workers`.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from moembed.embedder import Embedder
from moembed.search.index import Index
from moembed.serve.batching.limits import BatchLimits
from moembed.serve.protocol import protocol
from moembed.serve.settings import MULTIPROCESS, ServeSettings
from moembed.serve.state import Scorer
from moembed.serve.workers import run_workers
from moembed.types import UserError

_ENDING = (signal.SIGTERM, signal.SIGINT)


def run_server(
    settings: ServeSettings,
    listener: socket.socket,
    embedder: Embedder,
    index: Index | None = None,
    reranker: Scorer | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, and until what is at work then is answered; the exit code."""
    with _shared_counts(settings.workers > 1):
        from moembed.serve.app import create_app
        from moembed.serve.metrics import Metrics, counts_together, forget_process
        from moembed.serve.served import ServedModel

        metrics = Metrics()
        limits = BatchLimits(
            settings.batch_tokens,
            settings.queue_tokens,
            settings.max_age,
            settings.batch_seconds,
            settings.lanes,
            settings.request_tokens,
            settings.max_wait,
        )
        model = ServedModel(settings.served_name, embedder, limits, metrics)

        def work(number: int) -> int:
            app = create_app(settings, model, index, reranker, metrics, on_failure=lambda: _end(server))
            server = uvicorn_server(app, settings)
            # uvicorn hands a signal on, when it is done, to whoever had it before: that must do no harm
            for name in _ENDING:
                signal.signal(name, lambda *_: _end(server))
            server.run(sockets=[listener])
            if app.state.serving.failure:
                raise UserError(f"the model could not be made ready: {app.state.serving.failure}")
            return 0

        if settings.workers == 1:
            return work(0)
        if not counts_together():
            raise UserError("several workers need a fresh process: start them with the command moembed serve")
        forget_process(os.getpid())  # it serves nothing itself
        return run_workers(settings.workers, work, drain_seconds=settings.drain_seconds, ended=forget_process)


def _end(server: uvicorn.Server) -> None:
    server.should_exit = True


@contextmanager
def _shared_counts(wanted: bool) -> Iterator[None]:
    """A folder in which several processes count together; the library looks for it when it is imported."""
    if not wanted or MULTIPROCESS in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="moembed-metrics-") as folder:
        os.environ[MULTIPROCESS] = folder
        try:
            yield
        finally:
            del os.environ[MULTIPROCESS]


def listen(settings: ServeSettings) -> socket.socket:
    """A listening socket on the address of the settings.

    Raises:
        UserError: the port is taken, or the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sends small writes at once only on sockets that say they are TCP; else a reply waits 40 ms
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((settings.host, settings.port))
        found.listen(1024)
    except (OSError, UnicodeError) as error:  # the latter of a name that can be no machine's
        found.close()
        why = (error.strerror if isinstance(error, OSError) else None) or "no name of a machine"
        place = f"{settings.host}:{settings.port} ({why})"
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
