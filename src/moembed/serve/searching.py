"""The index of a server: refused if another model made it, searched in threads, as new as its folder."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moembed.embedder import Embedder
from moembed.encoding import Tag, View, truncate
from moembed.search.exact import search_parts
from moembed.search.index import Hit, Index
from moembed.search.index_manifest import index_folder
from moembed.search.index_model import searched_space
from moembed.serve.errors import RequestError
from moembed.serve.logs import where
from moembed.types import UserError

log = logging.getLogger("moembed.serve")
_RETRY = 1.0  # seconds
_Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of an index beside its queries.

    Attributes:
        where: a condition on columns, see `moembed.search.where`.
        hybrid: words count too, by BM25; ``weight`` is what the vectors count, 0 to 1. None: ranks are added.
        dim: compare the first so many coordinates alone, made unit vectors again. None: all.
    """

    k: int
    where: str | Mapping[str, Any] | None = None
    hybrid: bool = False
    weight: float | None = None
    dim: int | None = None


class ServedIndex:
    """An index that others may update: every search is of the version that is the newest when it begins."""

    def __init__(self, index: Index) -> None:
        self._index, self._stamp = index, _stamp(index.path)
        self._failed: _Stamp | None = None  # of a version that could not be opened
        self._again = 0.0  # when that is tried again, by the monotonic clock
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(2, "search")

    @property
    def index(self) -> Index:
        """The version that was opened last."""
        return self._index

    @property
    def dim(self) -> int:
        return self._index.dim

    @property
    def text_column(self) -> str | None:
        """The column that was embedded."""
        return self._index.manifest.get("column")

    async def find(
        self, query_QM: np.ndarray, texts: Sequence[str], question: Question
    ) -> tuple[list[list[Hit]], int]:
        """For each query the best rows, the best first; and the version of the index that they are of.

        Raises:
            RequestError: 400, the condition is none, or asks for what the columns do not have; 503, files of
            the index are gone.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._find, query_QM, texts, question)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _find(
        self, query_QM: np.ndarray, texts: Sequence[str], asked: Question
    ) -> tuple[list[list[Hit]], int]:
        index = self._newest()
        try:
            index.columns  # noqa: B018  # read once, so that what fails below is the condition
            try:
                index.require_condition(asked.where)
            except UserError as error:
                raise RequestError(400, str(error), param="where", code="invalid_condition") from None
            return self._found(index, query_QM, texts, asked), index.version
        except UserError as error:
            log.error("the index cannot be read", extra={"fields": where(error)})
            message = "a file of the index is gone or damaged: whoever runs this server must restore it"
            raise RequestError(503, message, code="index_unavailable", retry_after=5) from None

    def _found(
        self, index: Index, query_QM: np.ndarray, texts: Sequence[str], asked: Question
    ) -> list[list[Hit]]:
        if asked.dim is not None and asked.dim < index.dim:
            if index.codec != "float32":
                message = f"the index holds codes of {index.codec}, which have one size: leave dimensions out"
                raise RequestError(400, message, param="dimensions")
            parts = (truncate(vector_NM, asked.dim) for vector_NM in index.vectors())
            hits = search_parts(query_QM, parts, len(index), asked.k)
            return [index.hits(*pair) for pair in zip(hits.index, hits.score, strict=True)]
        return index.find(
            query_QM,
            texts=texts if asked.hybrid else None,
            k=asked.k,
            where=asked.where,
            hybrid=asked.hybrid,
            weight=asked.weight,
        )

    def _newest(self) -> Index:
        """The version in the folder now; the one before, where that cannot be opened or is foreign.

        What cannot be opened may be a folder that is still being copied, so it is tried again.
        """
        with self._lock:
            stamp, now = _stamp(self._index.path), time.monotonic()
            if stamp == self._stamp or (stamp == self._failed and now < self._again):
                return self._index
            try:
                self._index = Index.open(self._index.path, self._index.space_id)
                self._stamp, self._failed = stamp, None
                log.info("the index was updated", extra={"fields": {"version": self._index.version}})
            except UserError:
                if stamp != self._failed:
                    log.error("the new version of the index cannot be read: the one before serves on")
                self._failed, self._again = stamp, now + _RETRY
            return self._index


def open_index(path: Path, embedder: Embedder) -> Index:
    """The index in a folder, or in a run folder.

    Raises:
        UserError: there is none, it is damaged, it has vectors of tokens, or this model did not make it.
    """
    opened = Index.open(index_folder(path))
    if opened.fde is not None:
        raise UserError(
            f"{opened.path} is a multi-vector index, which is not served: search it with `moembed search`"
        )
    with ThreadPoolExecutor(1) as thread:  # hashes the weights; see `Embedder.from_pretrained`
        opened.require_space(thread.submit(_space, opened, embedder).result())
    return opened


def _space(opened: Index, embedder: Embedder) -> str:
    """The space of the documents: that of their role, or with any tag that the model knows."""
    role, view = opened.manifest.get("role"), View(dim=opened.dim)
    own = searched_space(embedder, role, view, opened.space_id)
    if opened.space_id == own or embedder.tags is None:
        return own
    names = embedder.tags.names
    tags: tuple[Tag, ...] = (*names, names)  # the last one: a tag for each text
    spaces = (embedder.space(role=role, view=view, tag=tag) for tag in tags)
    return next((space for space in spaces if space == opened.space_id), own)


def _stamp(path: Path) -> _Stamp:
    """What changes when a new version is committed; zeros: there is none."""
    try:
        found = os.stat(path / "manifest.json")
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns
