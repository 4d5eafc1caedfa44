"""What every route can reach: the model behind its batcher, an index, a reranker, settings and metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from starlette.requests import Request

from moembed.encoding import FULL, Progress, View

if TYPE_CHECKING:
    from moembed.embedder import Embedder
    from moembed.encoding import Tag
    from moembed.serve.batching.limits import BatchLimits
    from moembed.serve.metrics import Metrics
    from moembed.serve.searching import ServedIndex
    from moembed.serve.settings import ServeSettings

Truncate = Literal["error", "truncate", "chunk"]


class EmbeddedTexts(Protocol):
    """What a model answers, see `moembed.serve.served.Embedded`."""

    @property
    def array(self) -> np.ndarray: ...
    @property
    def tokens(self) -> int: ...
    @property
    def truncated(self) -> tuple[int, ...]: ...
    @property
    def space(self) -> str: ...


class Model(Protocol):
    """One model behind a batcher, see `moembed.serve.served.ServedModel`."""

    @property
    def name(self) -> str: ...
    @property
    def ready(self) -> bool: ...
    @property
    def dims(self) -> tuple[int, ...]: ...
    @property
    def dim(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def embedder(self) -> Embedder: ...
    @property
    def limits(self) -> BatchLimits: ...
    async def start(self) -> None: ...
    async def embed(
        self,
        inputs: Sequence[str] | Sequence[Sequence[int]],
        *,
        role: str | None = None,
        prompt: str | None = None,
        tag: Tag | None = None,
        truncate: Truncate = "error",
        view: View = FULL,
        client: str = "",
    ) -> EmbeddedTexts: ...
    async def tokenize(
        self, texts: Sequence[str], *, role: str | None = None, prompt: str | None = None
    ) -> list[list[int]]: ...
    async def drain(self, seconds: float) -> None: ...
    async def close(self) -> None: ...


class ScoredTexts(Protocol):
    """What a reranker answers, see `moembed.reranker.Scores`."""

    @property
    def array(self) -> np.ndarray: ...
    @property
    def cut(self) -> np.ndarray: ...
    @property
    def tokens(self) -> int: ...


class Scorer(Protocol):
    """How well each text answers a query, see `moembed.reranker.Reranker`."""

    @property
    def max_length(self) -> int: ...
    def scored(
        self,
        query: str,
        texts: Sequence[str],
        *,
        activation: str | None = None,
        progress: Progress | None = None,
    ) -> ScoredTexts: ...


@dataclass
class State:
    """One for the whole process. ``failure`` says why the model could not be made ready."""

    settings: ServeSettings
    model: Model
    index: ServedIndex | None
    reranker: Scorer | None
    metrics: Metrics
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "moembed-score"))
    # of its own: /tokenize does not wait until a reranker has scored thousands of texts
    tokenizing: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "moembed-tokenize"))
    failure: str | None = None
    reranking: int = 0  # requests that wait for the reranker, or are at it
    inspecting: int = 0  # texts that wait to be inspected, or are
    space: str = ""  # of whole vectors of texts without a prompt
    created: int = field(default_factory=lambda: int(time.time()))


def state_of(request: Request) -> State:
    """The state of the server that a request came to."""
    found: State = request.app.state.serving
    return found
