"""Exact cosine search by blocked matrix products."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from moembed.types import Hits, UserError

QUERY_BLOCK, DOCUMENT_BLOCK = 256, 4096  # sides of a block of scores
STEPS = (
    2**30
)  # of score from 0 to 1: coarser than the rounding of a float64 product, finer than float32 near 1
_ROW_MASK = 0xFFFFFFFF


def top_k(query_QM: np.ndarray, document_NM: np.ndarray, k: int) -> Hits:
    """The ``min(k, N)`` documents of highest cosine ``q·d / (|q| |d|)`` for every query, best first.

    Exact: scores are float64 products in ``STEPS`` steps, so that equal documents tie wherever they stand and
    a query finds the same alone or among others; of a tie the lower row wins. A zero vector always scores 0.
    Never holds more than one ``QUERY_BLOCK × DOCUMENT_BLOCK`` block of scores.

    Raises:
        UserError: NaN or infinite vectors, arrays that are not matrices of one width, ``k < 1``.
    """
    return search_parts(query_QM, [document_NM], len(document_NM), k)


def search_parts(query_QM: np.ndarray, parts: Iterable[np.ndarray], rows: int, k: int) -> Hits:
    """Keep the ``k`` greatest keys per query while the documents pass by, block after block."""
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    assert rows <= _ROW_MASK
    query_QM = unit_rows(query_QM, "query")
    best_QK = np.full((len(query_QM), min(k, rows)), np.iinfo(np.int64).min)
    first = 0
    for part_NM in parts:
        for start in range(0, len(part_NM), DOCUMENT_BLOCK):
            document_NM = unit_rows(part_NM[start : start + DOCUMENT_BLOCK], "document", first)
            if document_NM.shape[1] != query_QM.shape[1]:
                raise UserError(
                    f"queries have {query_QM.shape[1]} dimensions and documents {document_NM.shape[1]}: "
                    "embed both with one model and one dim"
                )
            for top in range(0, len(query_QM), QUERY_BLOCK):
                block = slice(top, top + QUERY_BLOCK)
                best_QK[block] = _merge(best_QK[block], query_QM[block] @ document_NM.T, first)
            first += len(document_NM)
    best_QK = np.sort(best_QK, axis=1)[:, ::-1]
    return Hits(_ROW_MASK - (best_QK & _ROW_MASK), ((best_QK >> 32) / STEPS).astype(np.float32))


def unit_rows(vector_NM: np.ndarray, what: str, first: int = 0) -> np.ndarray:
    """Rows divided by their length, in float64; a row of zeros stays as it is."""
    if vector_NM.ndim != 2:
        raise UserError(f"{what} vectors must be a matrix with one row each, got shape {vector_NM.shape}")
    vector_NM = vector_NM.astype(np.float64)
    norm_N = np.sqrt(np.einsum("nm,nm->n", vector_NM, vector_NM))
    if not np.isfinite(norm_N).all():
        row = first + int(np.argmin(np.isfinite(norm_N)))
        raise UserError(f"{what} {row} (counted from 0) has NaN or infinite numbers: embed it again")
    return vector_NM / np.where(norm_N > 0, norm_N, 1)[:, None]


def _merge(best_QK: np.ndarray, score_QN: np.ndarray, first: int) -> np.ndarray:
    """One integer per candidate, score above and reversed row below: orders by score, then by lower row."""
    row_N = np.arange(first, first + score_QN.shape[1])
    key_QN = (np.rint(score_QN * STEPS).astype(np.int64) << 32) | (_ROW_MASK - row_N)
    k = best_QK.shape[1]
    return np.partition(np.concatenate([best_QK, key_QN], axis=1), -k, axis=1)[:, -k:]
