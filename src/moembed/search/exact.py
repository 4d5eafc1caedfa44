"""Exact cosine search by blocked matrix products: the best documents of a query, or the rank of one.

The products are taken in float32. Its rounding is bounded, so a score that lies further than that bound from
what it is compared with is decided already; the few others are computed again in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from moembed.types import Hits, UserError

QUERY_BLOCK, DOCUMENT_BLOCK = 512, 2048  # sides of a block of scores
# Steps of score from 0 to 1: coarser than the rounding of a float64 product, finer than float32 near 1.
STEPS = 2**30
_ROW_MASK = 0xFFFFFFFF
_NOTHING = np.iinfo(np.int64).min  # the key of no document: below every other
_DENSE = 8  # above one open score in so many, one product of the block is cheaper than the open pairs
_PAIRS = 8192  # rows gathered at a time to compute open pairs
_LARGER = 4  # a block of documents may be so many times as large for a few queries
_CROWD = 4  # open scores for every one that is wanted, above which the block itself says how high the bar is


def top_k(query_QM: np.ndarray, document_NM: np.ndarray, k: int) -> Hits:
    """The ``min(k, N)`` documents of highest cosine ``q·d / (|q| |d|)`` for every query, best first.

    Exact: scores are float64 products in ``STEPS`` steps, so that equal documents tie wherever they stand and
    a query finds the same alone or among others; of a tie the lower row wins. A zero vector always scores 0.
    Never holds more than a few ``QUERY_BLOCK × DOCUMENT_BLOCK`` blocks of numbers.

    Raises:
        UserError: NaN or infinite vectors, arrays that are not matrices of one width, ``k < 1``.
    """
    return search_parts(query_QM, [document_NM], len(document_NM), k)


def search_parts(
    query_QM: np.ndarray,
    parts: Iterable[np.ndarray],
    rows: int,
    k: int,
    norms: Iterable[np.ndarray] | None = None,
    keep: Iterable[np.ndarray] | None = None,
) -> Hits:
    """``top_k`` over documents that pass by part after part, ``rows`` in all.

    With ``norms``, the ``norms_of`` every part, the same is found without making float64 copies of them all:
    several times as fast for a few queries. With ``keep``, bool for every row of a part, the others are no
    documents, but count in the numbers of those that are; at least ``k`` must be kept.
    """
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    assert rows <= _ROW_MASK
    query_QM = unit_rows(query_QM, "query")
    best_QK = np.full((len(query_QM), min(k, rows)), _NOTHING)
    for scores in _blocks(query_QM, parts, norms, keep):
        best_QK[scores.queries] = _merge(best_QK[scores.queries], scores)
    best_QK = np.sort(best_QK, axis=1)[:, ::-1]
    return Hits(_ROW_MASK - (best_QK & _ROW_MASK), ((best_QK >> 32) / STEPS).astype(np.float32))


def ranks(query_QM: np.ndarray, parts: Iterable[np.ndarray], score_Q: np.ndarray) -> np.ndarray:
    """For every query one more than the number of documents that score above ``score_Q``: int64 ``(Q,)``.

    With ``score_Q`` from ``pair_scores`` that is the rank of a document among the others, ties in its favour.

    Raises:
        UserError: as ``top_k``.
    """
    query_QM = unit_rows(query_QM, "query")
    rank_Q = np.ones(len(query_QM), dtype=np.int64)
    for scores in _blocks(query_QM, parts):
        bar_Q = score_Q[scores.queries]
        row, column = scores.at_least(bar_Q)
        above = scores.score_QN[row, column] > bar_Q[row] + scores.slack
        open_ = np.flatnonzero(~above)
        above[open_] = scores.exact(row[open_], column[open_]) > bar_Q[row[open_]]
        rank_Q[scores.queries] += np.bincount(row[above], minlength=len(bar_Q))
    return rank_Q


def pair_scores(query_QM: np.ndarray, document_QM: np.ndarray) -> np.ndarray:
    """The cosine of every query with the document of the same row, float64 ``(Q,)``, as ``top_k`` scores it.

    Raises:
        UserError: as ``top_k``.
    """
    return _cosines(unit_rows(query_QM, "query"), unit_rows(document_QM, "document"))


def scores_of(query_QM: np.ndarray, query_P: np.ndarray, document_PM: np.ndarray) -> np.ndarray:
    """The cosine of every document with the query of a number, float64 ``(P,)``, as ``top_k`` scores it."""
    return _cosines(unit_rows(query_QM, "query")[query_P], unit_rows(document_PM, "document"))


def unit_rows(vector_NM: np.ndarray, what: str, first: int = 0) -> np.ndarray:
    """Rows divided by their length, in float64; a row of zeros stays as it is.

    Raises:
        UserError: no matrix, or NaN or infinite numbers; ``first`` is the number of the first row.
    """
    wide_NM, norm_N = _measured(vector_NM, what, first)
    return wide_NM / np.where(norm_N > 0, norm_N, 1)[:, None]


def require_rows(vector_NM: np.ndarray, what: str, first: int = 0) -> None:
    """Raise UserError where ``unit_rows`` would."""
    _measured(vector_NM, what, first)


def _measured(vector_NM: np.ndarray, what: str, first: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows in float64, and their lengths."""
    if vector_NM.ndim != 2:
        raise UserError(f"{what} vectors must be a matrix with one row each, got shape {vector_NM.shape}")
    wide_NM = vector_NM.astype(np.float64)
    norm_N = _lengths(wide_NM)
    if not np.isfinite(norm_N).all():
        row = first + int(np.argmin(np.isfinite(norm_N)))
        raise UserError(f"{what} {row} (counted from 0) has NaN or infinite numbers: embed it again")
    return wide_NM, norm_N


def norms_of(document_NM: np.ndarray) -> np.ndarray:
    """The lengths of the rows, float64 ``(N,)``."""
    blocks = (
        document_NM[start : start + DOCUMENT_BLOCK] for start in range(0, len(document_NM), DOCUMENT_BLOCK)
    )
    return np.concatenate([np.zeros(0), *(_lengths(block_NM.astype(np.float64)) for block_NM in blocks)])


def _lengths(vector_NM: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("nm,nm->n", vector_NM, vector_NM))


@dataclass(frozen=True, slots=True)
class _Documents:
    """A block of documents: unit vectors in float64, or vectors as they were given and their lengths."""

    vector_NM: np.ndarray
    norm_N: np.ndarray | None

    @classmethod
    def of(cls, vector_NM: np.ndarray, norm_N: np.ndarray | None, first: int) -> _Documents:
        # far from length 1, float32 products could overflow or vanish; NaN is between no two numbers
        if norm_N is not None and vector_NM.dtype == np.float32:
            usual_N = (norm_N > 1e-3) & (norm_N < 1e3)
            if usual_N.all():
                return cls(vector_NM, norm_N)
        return cls(unit_rows(vector_NM, "document", first), None)

    def narrow_scores(self, narrow_QM: np.ndarray) -> np.ndarray:
        """All scores in float32, see ``_Scores.slack``."""
        if self.norm_N is None:
            return narrow_QM @ self.vector_NM.astype(np.float32).T
        return (narrow_QM @ self.vector_NM.T) * (1 / self.norm_N).astype(np.float32)

    def units(self, rows: slice | np.ndarray) -> np.ndarray:
        """Unit vectors in float64."""
        if self.norm_N is None:
            return self.vector_NM[rows]
        return self.vector_NM[rows].astype(np.float64) / self.norm_N[rows, None]


@dataclass(frozen=True, slots=True)
class _Scores:
    """A block of scores: those of the queries ``queries`` with the documents from row ``first`` on."""

    queries: slice
    first: int
    query_QM: np.ndarray
    documents: _Documents
    score_QN: np.ndarray  # float32

    @property
    def slack(self) -> float:
        """No float32 score, nor a bar made float32, is further from the score in steps.

        A dot product of ``M`` terms errs by at most ``M`` units of rounding times ``Σ |q_m d_m| ≤ |d|``; the
        query, the bar and the document (or the reciprocal of its length, and the product with it) were
        rounded once more.
        """
        return (self.query_QM.shape[1] + 6) * 2.0**-24 + 1 / STEPS

    def at_least(self, bar_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of every score that may reach the bar of its query, by rows."""
        bar_Q1 = (bar_Q - self.slack).astype(np.float32)[:, None]
        return np.divmod(np.flatnonzero(self.score_QN >= bar_Q1), max(self.score_QN.shape[1], 1))

    def sure_bar(self, k: int) -> np.ndarray:
        """For every query a score that at least ``k`` documents of this block reach, float64 ``(Q,)``."""
        return np.partition(self.score_QN, -k, axis=1)[:, -k].astype(np.float64) - self.slack

    def exact(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """The scores at these places, in steps."""
        if len(row) * _DENSE > self.score_QN.size:
            return _in_steps(self.query_QM @ self.documents.units(slice(None)).T)[row, column]
        score = np.empty(len(row))
        for start in range(0, len(row), _PAIRS):
            some = slice(start, start + _PAIRS)
            score[some] = _cosines(self.query_QM[row[some]], self.documents.units(column[some]))
        return score


def _blocks(
    query_QM: np.ndarray,
    parts: Iterable[np.ndarray],
    norms: Iterable[np.ndarray] | None = None,
    keep: Iterable[np.ndarray] | None = None,
) -> Iterator[_Scores]:
    """All scores, a block of documents after the other and within it a block of queries after the other."""
    narrow_QM, first = query_QM.astype(np.float32), 0
    sides = (repeat(None) if side is None else side for side in (norms, keep))
    # for a few queries most of a block's time are its calls; without lengths it is copied to float64
    size = DOCUMENT_BLOCK * (
        1 if norms is None else max(1, min(_LARGER, QUERY_BLOCK // max(1, len(query_QM))))
    )
    for part_NM, norm_N, keep_N in zip(parts, *sides, strict=False):
        for start in range(0, len(part_NM), size):
            some = slice(start, start + size)
            documents = _Documents.of(part_NM[some], None if norm_N is None else norm_N[some], first)
            if documents.vector_NM.shape[1] != query_QM.shape[1]:
                raise UserError(
                    f"queries have {query_QM.shape[1]} dimensions and documents "
                    f"{documents.vector_NM.shape[1]}: embed both with one model and one dim"
                )
            for top in range(0, len(query_QM), QUERY_BLOCK):
                block = slice(top, top + QUERY_BLOCK)
                score_QN = documents.narrow_scores(narrow_QM[block])
                if keep_N is not None:
                    score_QN[:, ~keep_N[some]] = -np.inf
                yield _Scores(block, first, query_QM[block], documents, score_QN)
            first += len(documents.vector_NM)


def _merge(best_QK: np.ndarray, scores: _Scores) -> np.ndarray:
    """The ``K`` greatest keys of every query, the least of them first.

    A key is one integer per candidate, score above and reversed row below: it orders by score, then by lower
    row. Once ``K`` documents have passed, few others reach the least of them: only those get a key. Before
    that, a document below ``K`` others of its own block needs none either.
    """
    bar_Q = (best_QK[:, 0] >> 32) / STEPS
    row, column = scores.at_least(bar_Q)
    if len(row) > _CROWD * best_QK.size:
        row, column = scores.at_least(np.maximum(bar_Q, scores.sure_bar(best_QK.shape[1])))
    if not len(row):
        return best_QK
    count_Q = np.bincount(row, minlength=len(best_QK))
    place = np.arange(len(row)) - np.repeat(np.cumsum(count_Q) - count_Q, count_Q)
    new_QC = np.full((len(best_QK), count_Q.max()), _NOTHING)
    step = np.rint(scores.exact(row, column) * STEPS).astype(np.int64)
    new_QC[row, place] = (step << 32) | (_ROW_MASK - scores.first - column)
    k = best_QK.shape[1]
    return np.partition(np.concatenate([best_QK, new_QC], axis=1), -k, axis=1)[:, -k:]


def _cosines(query_PM: np.ndarray, document_PM: np.ndarray) -> np.ndarray:
    return _in_steps(np.einsum("pm,pm->p", query_PM, document_PM))


def _in_steps(score: np.ndarray) -> np.ndarray:
    return np.rint(score * STEPS) / STEPS
