"""The consistency filter: a pair stays if its document is among the best for its query.

Source: Nussbaum and Duderstadt, *Training Sparse Mixture of Experts Text Embedding Models* (2025), after
Günther et al., *Jina Embeddings* (2023).
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from moembed.config import Strict
from moembed.data.sources import Source, SourceConfig, load_source
from moembed.encoding import Bar, no_bar
from moembed.files import locked
from moembed.search.exact import pair_scores, ranks
from moembed.search.output import Partial, pair_rows, stamps
from moembed.search.teacher import Teacher
from moembed.search.texts import Column, distinct
from moembed.search.vectors import parts, save_array
from moembed.types import UserError

KEPT_AT = (1, 2, 3, 5, 10, 20, 50, 100)
_QUERIES = 16384  # queries whose vectors are in memory at a time
_PAIRS = 8192  # pairs that are Python objects at a time


class FilterConfig(Strict):
    """Which pairs stay.

    ``k``: the document must be among so many best. ``block``: pairs that compete at most, drawn at random
    with ``seed``, or as they follow one another with ``order`` file. ``by``: pairs of different languages, or
    of different groups, never share a block.
    """

    k: int = Field(2, ge=1)
    block: int = Field(1_000_000, ge=2)
    order: Literal["random", "file"] = "random"
    seed: int = Field(0, ge=0)
    by: Literal["language", "group"] | None = None


@dataclass(frozen=True, slots=True)
class FilterSummary:
    """What became of the pairs; ``sources`` and ``languages`` map a label to (kept, all).

    ``kept_at`` is the share of pairs that a rule of that ``k`` would have kept. ``whole_blocks`` counts the
    blocks of no more than ``k`` pairs, where nothing can be dropped. ``notes`` says what was not used.
    """

    path: Path
    pairs: int
    kept: int
    blocks: int
    whole_blocks: int
    kept_at: dict[int, float]
    sources: dict[str, tuple[int, int]]
    languages: dict[str, tuple[int, int]]
    notes: list[str] = field(default_factory=list)


def filter_pairs(
    pairs: SourceConfig,
    out: str | Path,
    teacher: Teacher,
    config: FilterConfig,
    *,
    cache: Path | None = None,
    overwrite: bool = False,
    progress: Bar = no_bar,
) -> FilterSummary:
    """Write the pairs ``(q, d)`` of ``pairs`` with ``rank(d) ≤ k``, in their order, to ``out``.

    ``rank(d) = 1 + |{d' in the block : cos(q, d') > cos(q, d)}|`` counts each text ``d'`` once, and none that
    is a document of the same query. So a copy of ``d`` never displaces it, and copies of a better document
    displace it once.

    Blocks that are finished lie in ``out.partial`` until all are; the same call goes on after them. There a
    block's vectors lie too until it is finished, unless ``cache`` keeps all of them.

    Raises:
        UserError: unusable pairs, teacher or output; no block of more than ``k`` pairs;
            blocks in ``out.partial`` of other options; another process that writes ``out``.
    """
    source = load_source(pairs)
    blocks = _blocks(source, config)
    largest = max(map(len, blocks))
    if config.k >= largest:
        raise UserError(f"k {config.k} keeps every pair: no block has more than {largest}")
    options = {"inputs": stamps(pairs), "teacher": teacher.identity()} | config.model_dump(exclude={"k"})
    with locked(Path(out)):
        partial = Partial(Path(out), options, overwrite)
        rank_N = np.empty(len(source), dtype=np.int64)
        for number, row_P in enumerate(blocks):
            file = partial / f"ranks-{number:05d}.npy"
            if not file.exists():
                folder, title = cache or partial / "vectors", f"block {number + 1} of {len(blocks)}"
                save_array(file, _rank_block(source, row_P, teacher, folder, title, progress))
                if not cache:
                    shutil.rmtree(folder, ignore_errors=True)
            rank_N[row_P] = np.load(file)
        kept = np.flatnonzero(rank_N <= config.k)
        rows = (pair_rows(source, kept[i : i + _PAIRS]) for i in range(0, len(kept), _PAIRS))
        partial.finish(rows, f"no pair stays: no document is among the {config.k} best of its query; raise k")
    return FilterSummary(
        path=Path(out),
        pairs=len(source),
        kept=len(kept),
        blocks=len(blocks),
        whole_blocks=sum(len(row_P) <= config.k for row_P in blocks),
        kept_at={k: float((rank_N <= k).mean()) for k in KEPT_AT},
        sources=_shares(source, "group", kept),
        languages=_shares(source, "language", kept),
        notes=source.remarks(),
    )


def pair_ranks(
    source: Source, teacher: Teacher, config: FilterConfig, folder: Path, progress: Bar = no_bar
) -> np.ndarray:
    """``rank(d)`` of every pair, as ``filter_pairs`` has it: int64 ``(N,)``. ``folder`` keeps the vectors."""
    rank_N = np.empty(len(source), dtype=np.int64)
    for number, row_P in enumerate(blocks := _blocks(source, config)):
        title = f"block {number + 1} of {len(blocks)}"
        rank_N[row_P] = _rank_block(source, row_P, teacher, folder, title, progress)
    return rank_N


def _blocks(source: Source, config: FilterConfig) -> list[np.ndarray]:
    """Row numbers of every block: as few as can be, of nearly equal size."""
    if config.by and set(source.count(config.by)) == {None}:
        raise UserError(
            f"no pair of {source.name} says its {config.by}: name the column, or make blocks of all"
        )
    labels = source.labels(config.by, range(len(source))) if config.by else [None] * len(source)
    codes: dict[str | None, int] = {}
    code_N = np.array([codes.setdefault(label, len(codes)) for label in labels])
    generator = np.random.default_rng(config.seed)
    blocks: list[np.ndarray] = []
    for code in range(len(codes)):
        row_P = np.flatnonzero(code_N == code)
        if config.order == "random":
            row_P = generator.permutation(row_P)
        blocks += map(np.sort, np.array_split(row_P, -(-len(row_P) // config.block)))
    return blocks


def _rank_block(
    source: Source, row_P: np.ndarray, teacher: Teacher, folder: Path, title: str, progress: Bar
) -> np.ndarray:
    """The rank of every pair of a block."""
    queries = distinct(Column("query", [source]), row_P)
    documents = distinct(Column("document", [source]), row_P)
    with progress(f"{title}: embedding", len(queries) + len(documents)) as advance:
        query_vectors = teacher.vectors(queries, folder, advance)
        document_vectors = teacher.vectors(documents, folder, advance)
    rank_P, score_P = np.empty(len(row_P), dtype=np.int64), np.empty(len(row_P))
    with progress(f"{title}: ranking", len(row_P)) as advance:
        for start in range(0, len(row_P), _QUERIES):
            some = slice(start, start + _QUERIES)
            query_QM = query_vectors(queries.text_N[some])
            score_P[some] = pair_scores(query_QM, document_vectors(documents.text_N[some]))
            rank_P[some] = ranks(query_QM, parts(document_vectors, len(documents)), score_P[some])
            advance(len(query_QM))
    return rank_P - _siblings_above(queries.text_N, documents.text_N, score_P)


def _siblings_above(query_P: np.ndarray, document_P: np.ndarray, score_P: np.ndarray) -> np.ndarray:
    """For every pair, the other documents of its query that score above its own, each counted once."""
    pair_P = np.stack([query_P, document_P], axis=1)
    _, first_U, pair_of_P = np.unique(pair_P, axis=0, return_index=True, return_inverse=True)
    query_U, score_U = query_P[first_U], score_P[first_U]
    order = np.lexsort((-score_U, query_U))  # by query, best first
    query_U, score_U = query_U[order], score_U[order]
    place = np.arange(len(order))
    worse = (np.diff(score_U, prepend=0) != 0) | (np.diff(query_U, prepend=-1) != 0)
    first_equal_U = np.maximum.accumulate(np.where(worse, place, 0))
    above_U = np.empty(len(order), dtype=np.int64)
    above_U[order] = first_equal_U - np.searchsorted(query_U, query_U)
    return above_U[pair_of_P.reshape(-1)]


def _shares(
    source: Source, label: Literal["language", "group"], kept: np.ndarray
) -> dict[str, tuple[int, int]]:
    """(kept, all) pairs of every label."""
    of_kept = Counter(source.labels(label, kept))
    return {name: (of_kept[name], rows) for name, rows in source.count(label).items() if name is not None}
