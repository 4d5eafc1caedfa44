"""A client of a server: what the model behind it is, and what else than vectors it answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moembed.client.connection import Connection, field
from moembed.client.info import read_info
from moembed.client.tagging import chosen_tag
from moembed.encoding import Tag, as_texts, role_prompt
from moembed.types import UserError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A row of the server's index: its id, its score for the query, and its columns."""

    id: str
    score: float
    row: Mapping[str, Any]


class BaseClient:
    """Knows the model of a server; see `moembed.client.model.Client`."""

    tag: str | None = None

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
        self._spaces: dict[tuple[str, int, Tag | None], str] = {}
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

    # ---- the rest of the server --------------------------------------------------------------------------

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        where: Any = None,
        hybrid: bool = False,
        rerank: bool = False,
        tag: str | None = None,
    ) -> list[SearchHit]:
        """The best ``k`` rows of the index that the server was started with (``--index``).

        Args:
            where: a filter over the columns, as `moembed search --where` takes it, or its JSON form.
            hybrid: BM25 and vectors together.
            rerank: order them with the server's reranker, whose scores they then have.
            tag: of the query, as in ``encode``.
        """
        asked: dict[str, Any] = {"query": query, "k": k, "where": where, "hybrid": hybrid or None}
        asked |= {"rerank": rerank or None, "tag": chosen_tag(self.info, "query", "", tag, self.tag)}
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

    def __enter__(self) -> Self:
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

    def _prompt(self, name: str | None) -> str:
        if name is None:
            return ""
        if name not in self.info.prompts:
            known = ", ".join(sorted(self.info.prompts)) or "none"
            raise UserError(f"this model has no prompt named {name!r} (known: {known})")
        return self.info.prompts[name]
