"""A served model as a `moembed.encoding.TextEncoder`: evaluate it, mine with it, search through it.

What it asks is ``moembed serve``: ``/info`` for the model, ``/space`` for the name of a vector space,
``/v1/embeddings`` for vectors (in base64: no number becomes text), ``/tokenize``, ``/search``, ``/rerank``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from concurrent.futures import as_completed

import numpy as np

from moembed.client.base import BaseClient
from moembed.client.connection import field
from moembed.client.replies import read_vectors
from moembed.client.tagging import chosen_tag, tags_of
from moembed.encoding import FULL, Progress, Tag, Vectors, View, as_texts, tag_of_role, truncate
from moembed.types import TruncationWarning, UserError


class Client(BaseClient):
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

    Attributes:
        tag: that of all texts which come without one, of a model that chooses experts by tags.

    Raises:
        UserError: nobody answers there, it is another kind of server, it wants a key, it has no such model.
    """

    def space(
        self,
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        tag: Tag | None = None,
    ) -> str:
        """See `moembed.encoding.TextEncoder`: the name that the model itself gives."""
        prefix = self.role_prefix(role) if prompt is None else prompt
        chosen = chosen_tag(self.info, role, prefix, tag, self.tag)
        each = chosen is not None and not isinstance(chosen, str)  # one space, whatever the tags
        key = prefix, self._width(view), self.info.tags if each else chosen
        if key not in self._spaces:
            asked = {"model": self.info.name, "prompt": key[0], "dimensions": key[1]}
            asked |= {} if key[2] is None else {"tag": key[2]}
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
        tag: Tag | None = None,
    ) -> Vectors:
        """See `moembed.encoding.TextEncoder`; ``tag`` as in ``encode``."""
        listed, prefix = as_texts(texts), self.role_prefix(role) if prompt is None else prompt
        tag = chosen_tag(self.info, role, prefix, tag, self.tag)
        tags = tags_of(tag, len(listed), self.info.default_tag)
        width, space = self._width(view), self.space(prompt=prefix, view=view, tag=tag)
        # a size that the model was not trained for is cut here: the server may refuse it
        sent = width if width in self.info.dims else self.dim
        sent_space = self.space(prompt=prefix, view=View(dim=sent), tag=tag)
        vector_NM, truncated = np.zeros((len(listed), width), dtype=np.float32), 0
        waiting = {
            self._pool.submit(
                self._embed,
                listed[rows.start : rows.stop],
                prefix,
                sent,
                sent_space,
                tags and tags[rows.start : rows.stop],
            ): rows
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
        tag: Tag | None = None,
    ) -> np.ndarray:
        """As ``Embedder.encode``: float32 ``(len(texts), dim)``, rows of length 1; of one string one vector.

        Args:
            tag: of all texts, or a list of one each, for a model that chooses experts by tags.

        Warns:
            TruncationWarning: with the number of texts that were longer than the model reads.
        """
        if prompt is not None and prompt_name is not None:
            raise UserError("give prompt_name or prompt, not both")
        prefix = self._prompt(prompt_name) if prompt is None else prompt
        listed = [texts] if isinstance(texts, str) else as_texts(texts)
        view = View(dim=dim)
        found = self.vectors(listed, role=prompt_name, prompt=prefix, view=view, progress=progress, tag=tag)
        if found.truncated:
            warnings.warn(
                f"{found.truncated} of {len(listed)} texts were cut at {self.max_length} tokens",
                TruncationWarning,
                stacklevel=2,
            )
        return found.array[0] if isinstance(texts, str) else found.array

    def encode_query(
        self, texts: str | Iterable[str], dim: int | None = None, *, tag: Tag | None = None
    ) -> np.ndarray:
        """``encode`` with the model's ``query`` prompt, if it has one."""
        tag = tag_of_role("query", self.info.tags) if tag is None else tag
        return self.encode(texts, dim=dim, prompt=self.role_prefix("query"), tag=tag)

    def encode_document(
        self, texts: str | Iterable[str], dim: int | None = None, *, tag: Tag | None = None
    ) -> np.ndarray:
        """``encode`` with the model's ``document`` (or ``passage``) prompt, if it has one."""
        tag = tag_of_role("document", self.info.tags) if tag is None else tag
        return self.encode(texts, dim=dim, prompt=self.role_prefix("document"), tag=tag)

    def similarity(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Cosines of all vectors of ``one`` with all of ``other``: ``(N, K)``; a single vector is one row."""
        one_NM, other_KM = (truncate(rows, rows.shape[1]) for rows in map(np.atleast_2d, (one, other)))
        return one_NM @ other_KM.T

    def _embed(
        self, texts: list[str], prompt: str, dim: int, space: str, tags: list[str | None] | None
    ) -> tuple[np.ndarray, int]:
        """The vectors of one request, and how many of its texts were cut."""
        asked = {
            "model": self.info.name, "input": texts, "prompt": prompt, "dimensions": dim,
            "encoding_format": "base64", "truncate": "truncate",
        }  # fmt: skip
        if tags is not None:
            same = len(set(tags)) == 1 and tags[0] is not None
            asked["tag"] = tags[0] if same else tags
        reply = self._connection.ask("POST", "/v1/embeddings", asked)
        if field(reply, "space", self.url) != space:
            raise UserError(f"{self.url} serves another model than when this client connected: connect again")
        vector_NM = read_vectors(reply, len(texts), dim, self.url)
        return vector_NM, field(reply, "truncated_texts", self.url)

    def _width(self, view: View) -> int:
        if view.layers is not None or view.experts is not None:
            raise UserError("a served model has the layers and experts it was started with: leave them out")
        width = self.dim if view.dim is None else view.dim
        if not 1 <= width <= self.dim:
            raise UserError(f"dim {view.dim} is not within 1..{self.dim}")
        return width
