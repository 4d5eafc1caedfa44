"""One model behind a batcher, for the event loop of a server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from moembed.embedder import Embedder
from moembed.encoding import FULL, Tag, View
from moembed.encoding import truncate as shortened
from moembed.inference.member import check_view
from moembed.inference.token_vectors import require_one_vector
from moembed.serve import tracing
from moembed.serve.batching.batcher import Batcher, NotFiniteError, Request, shutting_down
from moembed.serve.batching.limits import SILENT, BatchLimits, BatchObserver
from moembed.serve.computing import Computation
from moembed.serve.errors import RequestError
from moembed.serve.refusals import refused, require_few
from moembed.serve.tokenizing import (
    Fitted,
    TokenizerThreads,
    Truncate,
    fit,
    given_rows,
    guessed_tokens,
    mean_of_pieces,
)
from moembed.types import UserError

Inputs = Sequence[str] | Sequence[Sequence[int]]

_PROMPTS = 64  # prompts that are kept as tokens, and in the names of spaces

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of the texts of one request.

    Attributes:
        array: float32 ``(N, M)``, unit rows in the order of the texts.
        tokens: that were read, prompts and special ones included.
        truncated: of each text, the tokens that were cut off.
        space: the name of the space the vectors live in.
    """

    array: np.ndarray
    tokens: int
    truncated: tuple[int, ...]
    space: str


class ServedModel:
    """Texts of many clients to the vectors that ``embedder.vectors`` gives each alone.

    It may be made before a process is forked, and is started in the child. Its coroutines belong to one event
    loop; nothing of a model is computed in the loop's thread.

    Args:
        name: by which clients ask for it.
        limits: see there; what is None hangs on the embedder's device, and is filled in by ``start``.
    """

    def __init__(
        self,
        name: str,
        embedder: Embedder,
        limits: BatchLimits | None = None,
        observer: BatchObserver = SILENT,
    ) -> None:
        require_one_vector(embedder.pooling.config, "`moembed serve`")
        self.name, self.embedder, self.observer = name, embedder, observer
        self.dim, self.max_length = embedder.dim, embedder.max_length
        self.dims = tuple(sorted({dim for dim in embedder.dims if dim < self.dim} | {self.dim}))
        self.limits = limits or BatchLimits()
        self._batcher: Batcher | None = None
        self._tokenizing = TokenizerThreads(embedder.tokenizer)
        self._computation = Computation(embedder, observer)
        self._spaces: dict[tuple[str, str | None, Tag | None, View], str] = {}
        self._prompt_tokens: dict[str, int] = {}
        self._ahead = self._active = 0  # tokens on their way into the queue; requests that are not answered
        self._idle = asyncio.Event()
        self._idle.set()
        self._started = self._draining = False
        with ThreadPoolExecutor(1) as thread:  # hashes the weights once; see `Embedder.from_pretrained`
            self._spaces["", None, None, FULL] = thread.submit(embedder.space).result()

    @property
    def ready(self) -> bool:
        """Whether requests are answered: after the warm-up, until ``drain`` or ``close``."""
        alive = self._batcher is not None and self._batcher.alive
        return self._started and alive and not self._draining

    # ---- life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the threads, and compute a few batches that nobody asked for: the first ones are slower."""
        threads = torch.get_num_threads()
        limits = self.limits.on(self.embedder.device, threads)
        share = max(1, threads // (limits.lanes or 1))
        computation = self._computation
        computation.count_experts()
        batcher = Batcher(computation.compute, limits, self.observer, lambda: computation.warm_up(share))
        self.limits, self._batcher = limits, batcher
        await asyncio.to_thread(batcher.start)
        await asyncio.wrap_future(batcher.submit(computation.some_request()))
        self._started = True

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, and wait until those at hand are answered, at most ``seconds``."""
        self._draining = True
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    async def close(self) -> None:
        """End the threads; whoever still waits is refused with 503."""
        self._draining = True
        if self._batcher is not None:
            await asyncio.to_thread(self._batcher.close)
        self._tokenizing.close()

    # ---- requests ----------------------------------------------------------------------------------------

    async def embed(
        self,
        inputs: Inputs,
        *,
        role: str | None = None,
        prompt: str | None = None,
        tag: Tag | None = None,
        truncate: Truncate = "error",
        view: View = FULL,
        client: str = "",
    ) -> Embedded:
        """Embed the texts, or the rows of token ids, of one request.

        Token ids are the model's own; special tokens are added where there are none.

        Args:
            role, prompt, tag, view: as of ``Embedder.vectors``.
            truncate: what is done with a text longer than the model reads: refuse the request, cut the text
                as ``Embedder.vectors`` does, or give the mean of its pieces, weighted by their tokens.
            client: those with other names are treated fairly among each other.

        Raises:
            RequestError: 400, what the model cannot do; 413, more tokens than a request may have; 429, too
                much waits; 500, the model failed; 503, the server is shutting down.
        """
        self._running().admit(client, self._ahead)
        with self._answering():
            prefix = self._prefix(role, prompt)
            with refused("dimensions"):
                check_view(self.embedder.encoder.spec, view, self.dim)
            space = await self._space(prefix, role, tag, view)
            tags = await self._tags(inputs, prefix, role, tag)
            if not inputs:
                return Embedded(np.zeros((0, view.dim or self.dim), dtype=np.float32), 0, (), space)
            with tracing.span("tokenise"):
                fitted, prompt_tokens = await self._fitted(inputs, prefix, truncate)
            require_few(sum(map(len, fitted.rows)), self.limits.request_tokens)
            if tags is not None and fitted.text_R is not None:  # the pieces of a text have its tag
                tags = [tags[text] for text in fitted.text_R]
            known, recorder = self._computation.known(prompt_tokens), tracing.batch_recorder()
            request = Request(client, fitted.rows, known, tags, view.layers, on_batch=recorder)
            array_RM = await self._computed(request, fitted)
            if view.dim is not None and view.dim < self.dim:
                array_RM = shortened(array_RM, view.dim)
            if lost := sum(fitted.truncated):
                self.observer.truncated(sum(map(bool, fitted.truncated)), lost)
            array_NM = mean_of_pieces(array_RM, fitted)
            return Embedded(array_NM, sum(map(len, fitted.rows)), fitted.truncated, space)

    async def tokenize(
        self, texts: Sequence[str], *, role: str | None = None, prompt: str | None = None
    ) -> list[list[int]]:
        """Token ids of every text, prompt and special ones included, none cut.

        Raises:
            RequestError: 400, a text or a prompt that is no valid Unicode.
        """
        with refused("input"):
            return await self._tokenizing.rows(texts, self._prefix(role, prompt))

    def _running(self) -> Batcher:
        if self._draining:
            raise shutting_down()
        if self._batcher is None or not self._started:
            raise RequestError(503, "the model is being loaded", code="loading", retry_after=1.0)
        return self._batcher

    # ---- steps of a request ------------------------------------------------------------------------------

    def _prefix(self, role: str | None, prompt: str | None) -> str:
        with refused("prompt"):
            return self.embedder.prefix(role, prompt)

    async def _tags(self, inputs: Inputs, prefix: str, role: str | None, tag: Tag | None) -> list[int] | None:
        """The number of each text's tag; a function of the model that finds tags sees no token ids."""
        model = self.embedder
        if model.tags is None and tag is None:
            return None
        texts = [one for one in inputs if isinstance(one, str)]
        with refused("tag"):
            if len(texts) < len(inputs):
                said = tag or (role and model.role_tag(role)) or model.tag
                if callable(said) or (said == model.tag and model.finds_tags):
                    raise UserError("nothing says which tag token ids have: send tag with them")
                texts = [""] * len(inputs)
            if not inputs and tag is not None:  # of no texts, too, the model must know it
                texts = [""] * (1 if isinstance(tag, str) else len(tag))
            numbers = partial(model.tag_numbers, texts, role=role, prompt=prefix, tag=tag)
            return await self._tokenizing.run(numbers)

    async def _space(self, prompt: str, role: str | None, tag: Tag | None, view: View) -> str:
        """The name of a space: megabytes of tokenizer are hashed for it, so it is kept."""
        each = None if tag is None else tag if isinstance(tag, str) else ()  # one space, whatever the tags
        key = prompt, role, each, view
        if key not in self._spaces:
            _make_room(self._spaces)
            name = partial(self.embedder.space, prompt=prompt, role=role, tag=each, view=view)
            self._spaces[key] = await self._tokenizing.run(name)
        return self._spaces[key]

    async def _fitted(self, inputs: Inputs, prefix: str, truncate: Truncate) -> tuple[Fitted, int]:
        """The rows of a request, and how many tokens at their starts are those of the prompt."""
        tokenizer, run = self.embedder.tokenizer, self._tokenizing.run
        texts = [one for one in inputs if isinstance(one, str)]
        ids = [one for one in inputs if not isinstance(one, str)]
        guess = guessed_tokens(inputs, None if truncate == "chunk" else self.max_length)
        guess = min(guess, (self.limits.queue_tokens or 1) // 2)  # one request does not keep others out
        self._ahead += guess
        try:
            with refused("input"):
                if ids:
                    if texts or prefix:
                        what = "texts" if texts else f"the prompt {prefix!r}"
                        raise UserError(
                            f"{what} and token ids cannot be mixed: send text, or token ids alone"
                        )
                    rows = await run(given_rows, ids, tokenizer, self.embedder.encoder.spec.vocab_size)
                    return await run(fit, rows, tokenizer, truncate, 0), 0
                if prefix not in self._prompt_tokens:
                    _make_room(self._prompt_tokens)
                    await run(partial(self.embedder.prompt_tokens, prompt=prefix))  # or refuses it
                    self._prompt_tokens[prefix] = await run(tokenizer.prompt_tokens, prefix)
                count = self._prompt_tokens[prefix]
                rows = await self._tokenizing.rows(texts, prefix)
            return await run(fit, rows, tokenizer, truncate, count, prefix), count
        finally:
            self._ahead -= guess

    async def _computed(self, request: Request, fitted: Fitted) -> np.ndarray:
        assert self._batcher is not None
        try:
            return await asyncio.wrap_future(self._batcher.submit(request))
        except asyncio.CancelledError:
            self._batcher.cancel(request)
            raise
        except RequestError:
            raise
        except NotFiniteError as error:
            place = error.place if fitted.text_R is None else int(fitted.text_R[error.place])
            message = f"the model gave text {place} a vector that is not finite, so nothing is returned"
            _logger.error("%s", message)
            raise RequestError(500, message, code="not_finite", param="input") from error
        except UserError as error:
            raise RequestError(400, str(error), param="input") from error
        except Exception as error:
            _logger.error("a request could not be embedded", exc_info=error)
            raise RequestError(500, "the model could not embed this request", code="failed") from error

    @contextmanager
    def _answering(self) -> Iterator[None]:
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()


def _make_room(kept: dict[Any, Any]) -> None:
    """Clients may send any prompt: so many are kept, and then none."""
    if len(kept) >= _PROMPTS:
        kept.clear()
