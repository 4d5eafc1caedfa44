"""A served model as a `moembed.encoding.TextEncoder`: evaluate it, mine with it, search through it.

What it asks is ``moembed serve``: ``/info`` for the model, ``/space`` for the name of a vector space,
``/v1/embeddings`` for vectors (in base64: no number becomes text), ``/tokenize``, ``/search``, ``/rerank``.
"""

from __future__ import annotations

import base64
import binascii
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np

from moembed.client.connection import Connection, field
from moembed.client.info import read_info
from moembed.encoding import FULL, Progress, Vectors, View, as_texts, role_prompt, truncate
from moembed.types import TruncationWarning, UserError


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A row of the server's index: its id, its score for the query, and its columns."""

    id: str
    score: float
    row: Mapping[str, Any]


class Client:
    """A model behind ``moembed serve``. Safe to call from several threads at once.

    >>> with Client("http://127.0.0.1:8000") as model:         # doctest: +SKIP
    ...     model.encode_query(["read a parquet file"]).shape
    (1, 384)

    Args:
        url: where the server listens, with or without ``/v1`` at its end.
        model: the name it serves the model by; default: the one model it has.
        api_key: default: the environment variable MOEMBED_API_KEY.
        timeout: seconds to wait for one reply.
        retries: how often a request is sent again that met a busy server (429, 503, as it says when) or a
            connection that broke.
        in_flight: requests of this client on their way at one time.
        batch_texts, batch_characters: texts of one request, and their characters together, at most; a longer
            text travels alone.

    Raises:
        UserError: nobody answers there, it is another kind of server, it wants a key, it has no such model.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        in_flight: int = 4,
        batch_texts: int = 64,
        batch_characters: int = 100_000,
    ) -> None:
        if min(batch_texts, batch_characters) < 1:
            raise UserError("batch_texts and batch_characters must be at least 1")
        self._texts, self._characters = batch_texts, batch_characters
        self._connection = Connection(url, api_key, timeout, retries, in_flight)
        self.url = self._connection.url
        self._pool = ThreadPoolExecutor(in_flight, "moembed-client")
        self._spaces: dict[tuple[str, int], str] = {}
        try:
            self.info = read_info(self._connection, model)
        except BaseException:
            self.close()
            raise

    # ---- what the model is -------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Width of the full vector."""
        return self.info.dim

    @property
    def max_length(self) -> int | None:
        """Tokens read of a text, special ones and prompt included."""
        return self.info.max_length

    @property
    def dtype(self) -> str:
        """What the values that serve are rounded to."""
        return self.info.dtype

    @property
    def prompts(self) -> dict[str, str]:
        """The model's prompts by name."""
        return dict(self.info.prompts)

    def role_prompt(self, role: str) -> str | None:
        """The name of the prompt for a role, such as ``query``, else of the default prompt, else None."""
        return role_prompt(role, self.info.prompts, self.info.default_prompt)

    def role_prefix(self, role: str | None) -> str:
        """The text that is put in front of texts of a role; None: of texts without one."""
        return self._prompt(self.role_prompt(role)) if role is not None else ""

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        """See `moembed.encoding.TextEncoder`: the name that the model itself gives."""
        key = (self.role_prefix(role) if prompt is None else prompt, self._width(view))
        if key not in self._spaces:
            asked = {"model": self.info.name, "prompt": key[0], "dimensions": key[1]}
            self._spaces[key] = str(field(self._connection.ask("POST", "/space", asked), "space", self.url))
        return self._spaces[key]

    # ---- texts -------------------------------------------------------------------------------------------

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        """See `moembed.encoding.TextEncoder`."""
        listed, prefix = as_texts(texts), self.role_prefix(role) if prompt is None else prompt
        width, space = self._width(view), self.space(prompt=prefix, view=view)
        # a size that the model was not trained for is cut here: the server may refuse it
        sent = width if width in self.info.dims else self.dim
        sent_space = self.space(prompt=prefix, view=View(dim=sent))
        vector_NM, truncated = np.zeros((len(listed), width), dtype=np.float32), 0
        waiting = {
            self._pool.submit(self._embed, listed[rows.start : rows.stop], prefix, sent, sent_space): rows
            for rows in self._batches(listed)
        }
        try:
            for done in as_completed(waiting):
                rows = waiting[done]
                found_NM, cut = done.result()
                vector_NM[rows.start : rows.stop] = truncate(found_NM, width if width < sent else None)
                truncated += cut
                if progress:
                    progress(len(rows))
        finally:
            for future in waiting:
                future.cancel()
        return Vectors(vector_NM, truncated, space)

    def encode(
        self,
        texts: str | Iterable[str],
        prompt_name: str | None = None,
        dim: int | None = None,
        progress: Progress | None = None,
        *,
        prompt: str | None = None,
    ) -> np.ndarray:
        """As ``Embedder.encode``: float32 ``(len(texts), dim)``, rows of length 1; of one string one vector.

        Warns:
            TruncationWarning: with the number of texts that were longer than the model reads.
        """
        if prompt is not None and prompt_name is not None:
            raise UserError("give prompt_name or prompt, not both")
        prefix = self._prompt(prompt_name) if prompt is None else prompt
        listed = [texts] if isinstance(texts, str) else as_texts(texts)
        found = self.vectors(listed, prompt=prefix, view=View(dim=dim), progress=progress)
        if found.truncated:
            warnings.warn(
                f"{found.truncated} of {len(listed)} texts were cut at {self.max_length} tokens",
                TruncationWarning,
                stacklevel=2,
            )
        return found.array[0] if isinstance(texts, str) else found.array

    def encode_query(self, texts: str | Iterable[str], dim: int | None = None) -> np.ndarray:
        """``encode`` with the model's ``query`` prompt, if it has one."""
        return self.encode(texts, dim=dim, prompt=self.role_prefix("query"))

    def encode_document(self, texts: str | Iterable[str], dim: int | None = None) -> np.ndarray:
        """``encode`` with the model's ``document`` (or ``passage``) prompt, if it has one."""
        return self.encode(texts, dim=dim, prompt=self.role_prefix("document"))

    def similarity(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Cosines of all vectors of ``one`` with all of ``other``: ``(N, K)``; a single vector is one row."""
        one_NM, other_KM = (truncate(rows, rows.shape[1]) for rows in map(np.atleast_2d, (one, other)))
        return one_NM @ other_KM.T

    # ---- the rest of the server --------------------------------------------------------------------------

    def search(
        self, query: str, k: int = 10, *, where: Any = None, hybrid: bool = False, rerank: bool = False
    ) -> list[SearchHit]:
        """The best ``k`` rows of the index that the server was started with (``--index``).

        Args:
            where: a filter over the columns, as `moembed search --where` takes it, or its JSON form.
            hybrid: BM25 and vectors together.
            rerank: order them with the server's reranker, whose scores they then have.
        """
        asked = {"query": query, "k": k, "where": where, "hybrid": hybrid or None, "rerank": rerank or None}
        asked = {name: value for name, value in asked.items() if value is not None}
        (hits,) = field(self._connection.ask("POST", "/search", asked), "results", self.url)
        return [SearchHit(hit["id"], hit["score"], hit["row"]) for hit in hits]

    def rerank(self, query: str, texts: Iterable[str], *, truncate: bool = False) -> np.ndarray:
        """The score of every text for the query by the server's ``--reranker``: float32 ``(N,)``.

        They are those of ``/rerank``, between 0 and 1: the sigmoid of what the model says.

        Args:
            truncate: cut a query and text that are too long together; else they are refused.
        """
        listed = as_texts(texts)
        score_N = np.full(len(listed), np.nan, dtype=np.float32)
        for rows in self._batches(listed):
            asked = {"query": query, "texts": listed[rows.start : rows.stop], "truncate": truncate}
            for place in self._connection.ask("POST", "/rerank", asked):
                score_N[rows.start + place["index"]] = place["score"]
        if not np.isfinite(score_N).all():
            raise UserError(f"{self.url} left out the score of a text: it is not a server of this version")
        return score_N

    def num_tokens(
        self, texts: Iterable[str], *, role: str | None = None, prompt: str | None = None
    ) -> list[int]:
        """Tokens of every text before any cut, prompt and special ones included."""
        listed, prefix = as_texts(texts), self.role_prefix(role) if prompt is None else prompt
        found: list[int] = []
        for rows in self._batches(listed):
            asked = {"inputs": listed[rows.start : rows.stop], "prompt": prefix}
            found += map(len, self._connection.ask("POST", "/tokenize", asked))
        return found

    def close(self) -> None:
        """Give the connections back; a closed client answers no more."""
        self._pool.shutdown(cancel_futures=True)
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r}, {self.info.name!r}, dim {self.dim}, max_length {self.max_length})"

    # ---- requests ----------------------------------------------------------------------------------------

    def _batches(self, texts: Sequence[str]) -> Iterator[range]:
        """Neighbouring texts that travel together."""
        start = room = 0
        for place, text in enumerate(texts):
            if place > start and (place - start == self._most or len(text) > room):
                yield range(start, place)
                start = place
            room = (room if place > start else self._characters) - len(text)
        if start < len(texts):
            yield range(start, len(texts))

    @property
    def _most(self) -> int:
        return min(self._texts, self.info.max_texts)

    def _embed(self, texts: list[str], prompt: str, dim: int, space: str) -> tuple[np.ndarray, int]:
        """The vectors of one request, and how many of its texts were cut."""
        asked = {
            "model": self.info.name, "input": texts, "prompt": prompt, "dimensions": dim,
            "encoding_format": "base64", "truncate": "truncate",
        }  # fmt: skip
        reply = self._connection.ask("POST", "/v1/embeddings", asked)
        if field(reply, "space", self.url) != space:
            raise UserError(f"{self.url} serves another model than when this client connected: connect again")
        vector_NM = np.full((len(texts), dim), np.nan, dtype=np.float32)
        try:
            for item in reply["data"]:
                vector_NM[item["index"]] = np.frombuffer(base64.b64decode(item["embedding"]), "<f4").reshape(
                    dim
                )
        except (KeyError, IndexError, TypeError, ValueError, binascii.Error) as error:
            raise UserError(f"{self.url} answered with vectors that cannot be read: {error}") from None
        if not np.isfinite(vector_NM).all():
            raise UserError(f"{self.url} left out the vector of a text, or gave one with NaN in it")
        return vector_NM, field(reply, "truncated_texts", self.url)

    def _prompt(self, name: str | None) -> str:
        if name is None:
            return ""
        if name not in self.info.prompts:
            known = ", ".join(sorted(self.info.prompts)) or "none"
            raise UserError(f"this model has no prompt named {name!r} (known: {known})")
        return self.info.prompts[name]

    def _width(self, view: View) -> int:
        if view.layers is not None or view.experts is not None:
            raise UserError("a served model has the layers and experts it was started with: leave them out")
        width = self.dim if view.dim is None else view.dim
        if not 1 <= width <= self.dim:
            raise UserError(f"dim {view.dim} is not within 1..{self.dim}")
        return width
