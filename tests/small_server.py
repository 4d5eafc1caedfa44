"""A small model behind the real batcher and application, without a socket; a plugin of conftest.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import torch

from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.folder.reranker import fresh_reranker
from moembed.moe.router import RouterConfig
from moembed.reranker import Reranker

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    OpenServer = Callable[..., TestClient]


@pytest.fixture(scope="session")
def served_embedder(make_model: Callable[..., Embedder]) -> Embedder:
    """Experts in layers 1 and 3, trained sizes 8 and 16, prompts for queries and documents, 32 tokens."""
    model = make_model(moe=FlatMoE(layers=(1, 3), num_experts=4, router=RouterConfig(top_k=2)))
    model.dims = (8, 16)
    return model


@pytest.fixture(scope="session")
def tiny_reranker(served_embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    """A cross-encoder over the same encoder, with a score head of its own."""
    folder = tmp_path_factory.mktemp("reranker")
    served_embedder.save_pretrained(folder / "encoder")
    made = Reranker(fresh_reranker(folder / "encoder")).eval()
    with torch.no_grad():
        made.head.out.weight.mul_(20)  # scores far enough from each other
    return made


@pytest.fixture(scope="module")
def open_server(served_embedder: Embedder) -> Iterator[OpenServer]:
    """``open_server(api_keys=("secret",))``: a client of a warm server; it ends with the module."""
    from starlette.testclient import TestClient

    from moembed.serve.app import create_app
    from moembed.serve.batching.limits import BatchLimits
    from moembed.serve.metrics import Metrics
    from moembed.serve.served import ServedModel
    from moembed.serve.settings import ServeSettings

    with ExitStack() as stack:

        def start(index: Any = None, reranker: Any = None, **values: Any) -> TestClient:
            settings = ServeSettings(model="runs/tiny", **values)
            metrics = Metrics()
            limits = BatchLimits(request_tokens=settings.request_tokens)
            model = ServedModel("tiny", served_embedder, limits, metrics)
            app = create_app(settings, model, index, reranker, metrics)
            client = stack.enter_context(TestClient(app, raise_server_exceptions=False))
            wait_until_ready(client)
            return client

        yield start


@pytest.fixture(scope="module")
def server(open_server: OpenServer) -> TestClient:
    """A server with the default settings."""
    return open_server()


def wait_until_ready(client: TestClient, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while client.get("/health").status_code != 200:
        assert time.monotonic() < end, client.get("/health").text
        time.sleep(0.01)
