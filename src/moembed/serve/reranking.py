"""The reranker of a server: a bounded number of requests wait for it, and no text is cut unasked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from functools import partial

import numpy as np
from starlette.requests import Request

from moembed.serve.errors import TOO_LONG, RequestError
from moembed.serve.records import record_of
from moembed.serve.refusals import refused
from moembed.serve.state import ScoredTexts, State, state_of


class _NobodyWaitsError(Exception):
    """Whoever asked for scores is gone: the thread that computes them is wanted for others."""


async def scored(
    request: Request,
    query: str,
    texts: Sequence[str],
    *,
    truncate: bool | None = None,
    activation: str | None = None,
) -> ScoredTexts:
    """What the reranker says of a query and each text.

    Args:
        truncate: whether pairs that are too long may be cut; None: what the server was started with. The
            mean over chunks that a server may give for vectors is nothing that scores have.
        activation: see `moembed.reranker.Reranker.scored`.

    Raises:
        RequestError: 424, there is no reranker; 429, too many wait for it; 400, a pair is too long; 500, a
            score is no number.
    """
    state = state_of(request)
    found = await _in_turn(state, query, texts, activation)
    finite_N = np.isfinite(found.array)
    if not finite_N.all():
        message = f"the reranker gave text {int(np.argmin(finite_N))} a score that is not finite"
        raise RequestError(500, f"{message}, so nothing is returned", code="not_finite", param="texts")
    may_cut = state.settings.truncate == "truncate" if truncate is None else truncate
    if not may_cut and found.cut.any():
        assert state.reranker is not None
        place = int(np.flatnonzero(found.cut)[0])
        raise RequestError(
            400,
            f"query and text {place} together have {int(found.cut[place])} tokens more than the "
            f"{state.reranker.max_length} that the reranker reads: shorten them, or send truncate: true",
            code=TOO_LONG,
        )
    record = record_of(request.scope)
    record.tokens += found.tokens
    record.truncated_tokens += int(found.cut.sum())
    if found.cut.any():
        state.metrics.truncated(int((found.cut > 0).sum()), int(found.cut.sum()))
    return found


async def _in_turn(state: State, query: str, texts: Sequence[str], activation: str | None) -> ScoredTexts:
    if state.reranker is None:
        message = "this server has no reranker: start it with --reranker MODEL"
        raise RequestError(424, message, code="no_reranker")
    if state.reranking >= state.settings.rerank_requests:
        message = f"{state.reranking} requests wait for the reranker: send this one again later"
        raise RequestError(429, message, retry_after=1)
    gone = threading.Event()

    def look(scored: int) -> None:
        """After each batch. A client that left, the time limit and the server's end all cancel us."""
        if gone.is_set():
            raise _NobodyWaitsError

    state.reranking += 1
    try:
        work = partial(state.reranker.scored, query, texts, activation=activation, progress=look)
        with refused("query"):
            return await asyncio.get_running_loop().run_in_executor(state.threads, work)
    finally:
        gone.set()
        state.reranking -= 1
