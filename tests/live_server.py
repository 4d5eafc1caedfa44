"""A server of a model on a free port of this machine, for as long as a test needs it."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moembed.embedder import Embedder


@contextmanager
def live(
    embedder: Embedder, index: Path | None = None, reranker: Any = None, **changes: Any
) -> Iterator[str]:
    """The address of a server; ``changes`` are settings."""
    from moembed.search.index import Index
    from moembed.serve.app import create_app
    from moembed.serve.served import ServedModel
    from moembed.serve.server import address_of, listen, uvicorn_server
    from moembed.serve.settings import ServeSettings

    settings = ServeSettings(**({"model": "runs/demo", "port": 0, "drain_seconds": 5} | changes))
    opened = Index.open(index) if index else None
    app = create_app(settings, ServedModel(settings.served_name, embedder), opened, reranker)
    listener, server = listen(settings), uvicorn_server(app, settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = address_of(listener)
    try:
        _wait(f"{url}/health", thread)
        yield url
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive(), "the server did not end"


def _wait(url: str, thread: threading.Thread) -> None:
    for _ in range(400):
        assert thread.is_alive(), "the server ended at once"
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                assert reply.status == 200
            return
        except (urllib.error.URLError, OSError):  # it is being made ready
            time.sleep(0.025)
    raise TimeoutError(f"{url} did not become ready")
