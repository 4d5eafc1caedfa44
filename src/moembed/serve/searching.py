"""The index of a server: refused if another model made it, searched in threads, as new as its folder."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moembed.embedder import Embedder
from moembed.encoding import View, truncate
from moembed.search.exact import search_parts
from moembed.search.index import Hit, Index
from moembed.search.index_manifest import index_folder
from moembed.serve.errors import RequestError
from moembed.types import UserError

log = logging.getLogger("moembed.serve")


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

    async def find(self, query_QM: np.ndarray, texts: Sequence[str], question: Question) -> list[list[Hit]]:
        """For each query the best rows, the best first.

        Raises:
            RequestError: 400, the condition is none, or asks for what the columns do not have.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._find, query_QM, texts, question)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _find(self, query_QM: np.ndarray, texts: Sequence[str], asked: Question) -> list[list[Hit]]:
        index = self._newest()
        try:
            index.require_condition(asked.where)
        except UserError as error:
            raise RequestError(400, str(error), param="where", code="invalid_condition") from None
        if asked.dim is not None and asked.dim < index.dim:
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
        """The version in the folder now; the one before, where that cannot be opened or is foreign."""
        with self._lock:
            stamp = _stamp(self._index.path)
            if stamp == self._stamp:
                return self._index
            self._stamp = stamp
            try:
                self._index = Index.open(self._index.path, self._index.space_id)
                log.info("the index was updated", extra={"fields": {"version": self._index.version}})
            except UserError:
                log.error("the new version of the index cannot be read: the one before serves on")
            return self._index


def open_index(path: Path, embedder: Embedder) -> Index:
    """The index in a folder, or in a run folder.

    Raises:
        UserError: there is none, it is damaged, or this model did not make it.
    """
    opened = Index.open(index_folder(path))
    role, view = opened.manifest.get("role"), View(dim=opened.dim)
    with ThreadPoolExecutor(1) as thread:  # hashes the weights; see `Embedder.from_pretrained`
        opened.require_space(thread.submit(lambda: embedder.space(role=role, view=view)).result())
    return opened


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a new version is committed."""
    try:
        found = os.stat(path / "manifest.json")
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
