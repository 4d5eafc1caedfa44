"""The index of a server: opened once, refused if another model made it, searched in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from moembed.embedder import Embedder
from moembed.encoding import View
from moembed.search.index import Index
from moembed.serve.state import State


def open_index(path: Path, embedder: Embedder) -> Index:
    """The index in a folder, or in a run folder.

    Raises:
        UserError: there is none, it is damaged, or this model did not make it.
    """
    is_run = not (path / "manifest.json").exists() and (path / "index").is_dir()
    opened = Index.open(path / "index" if is_run else path)
    role, view = opened.manifest.get("role"), View(dim=opened.dim)
    with ThreadPoolExecutor(1) as thread:  # hashes the weights; see `Embedder.from_pretrained`
        opened.require_space(thread.submit(lambda: embedder.space(role=role, view=view)).result())
    return opened


async def find(state: State, index: Index, query_QM: np.ndarray, k: int) -> list[list[dict[str, Any]]]:
    """For each query the ``k`` best documents: id, cosine, and the columns they were indexed with."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(state.threads, _find, index, query_QM, k)


def _find(index: Index, query_QM: np.ndarray, k: int) -> list[list[dict[str, Any]]]:
    hits = index.search(query_QM, min(k, max(1, len(index))))
    return [
        _hits(numbers.tolist(), scores.tolist(), index.rows(numbers))
        for numbers, scores in zip(hits.index, hits.score, strict=True)
    ]


def _hits(
    numbers: Sequence[int], scores: Sequence[float], rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The id is that of the row; of a row without one, its number."""
    found = []
    for number, score, row in zip(numbers, scores, rows, strict=True):
        name = next((row[key] for key in ("_id", "id") if row.get(key) is not None), number)
        found.append({"id": str(name), "score": score, "row": row})
    return found
