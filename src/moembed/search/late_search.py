"""The best documents by MaxSim: candidates by the products of encodings, then exact scores of these alone; or
exact scores of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from moembed.encoding import TokenVectors
from moembed.types import Hits, UserError

CANDIDATES = 400  # documents of every query that get an exact score, at least
_SHARE = 4  # and at least so many times as many as are asked for
_BLOCK = 1024  # documents whose token vectors are in memory at a time
ENGINE = "muvera"  # what a plan calls the search among candidates

Tokens = Callable[[np.ndarray], TokenVectors]  # of documents, by their numbers


def num_candidates(k: int) -> int:
    """How many documents are scored exactly for the best ``k``."""
    return max(CANDIDATES, _SHARE * k)


def best_products(query_QF: np.ndarray, parts: Iterable[np.ndarray], count: int) -> np.ndarray:
    """The ``min(count, N)`` documents of the largest inner products, in no order: int64 ``(Q, C)``.

    Products and not cosines: the length of an encoding counts. A part is compared at a time.
    """
    number_QC = np.zeros((len(query_QF), 0), np.int64)
    score_QC = np.zeros((len(query_QF), 0), np.float32)
    first = 0
    for part_NF in parts:
        new_QN = query_QF @ part_NF.T
        own_QN = np.broadcast_to(np.arange(first, first + len(part_NF)), new_QN.shape)
        score_QC = np.concatenate([score_QC, new_QN], axis=1)
        number_QC = np.concatenate([number_QC, own_QN], axis=1)
        first += len(part_NF)
        if score_QC.shape[1] > count:
            kept = np.argpartition(-score_QC, count - 1, axis=1)[:, :count]
            score_QC = np.take_along_axis(score_QC, kept, axis=1)
            number_QC = np.take_along_axis(number_QC, kept, axis=1)
    return number_QC


def maxsim_scores(query_TM: np.ndarray, documents: TokenVectors) -> np.ndarray:
    """``mean_i max_j <q_i, d_j>`` of one query with every document: float32 ``(N,)``, as the training has it.

    A query without a token scores 0.

    Raises:
        UserError: a document without a token.
    """
    if not len(query_TM) or not len(documents):
        return np.zeros(len(documents), np.float32)
    require_tokens(documents)
    start_N = np.cumsum(documents.length_N) - documents.length_N
    near_TT = query_TM @ documents.vector_TM.T
    score_N: np.ndarray = np.maximum.reduceat(near_TT, start_N, axis=1).mean(axis=0)
    return score_N.astype(np.float32)


def require_tokens(documents: TokenVectors) -> None:
    """
    Raises:
        UserError: a document without a token, which no query could be compared with.
    """
    if not documents.length_N.all():
        place = int(np.argmin(documents.length_N))
        raise UserError(
            f"document {place} (counted from 0) has no token, so nothing could be compared with it: leave "
            "it out"
        )


def late_search(queries: TokenVectors, candidate_QC: np.ndarray, tokens: Tokens, k: int) -> Hits:
    """The best ``k`` of the candidates of every query by exact MaxSim; ties by lower number."""
    index_QK, score_QK = [], []
    for query_TM, candidate_C in zip(queries, np.sort(candidate_QC, axis=1), strict=True):
        score_C = maxsim_scores(query_TM, tokens(candidate_C))
        best = np.argsort(-score_C, kind="stable")[:k]
        index_QK.append(candidate_C[best])
        score_QK.append(score_C[best])
    shape = len(queries), min(k, candidate_QC.shape[1])
    return Hits(np.array(index_QK, np.int64).reshape(shape), np.array(score_QK, np.float32).reshape(shape))


def late_scan(queries: TokenVectors, rows: int, tokens: Tokens, k: int) -> Hits:
    """The best ``k`` of all ``rows`` documents of every query by exact MaxSim; ties by lower number."""
    index_QK = [np.zeros(0, np.int64) for _ in range(len(queries))]
    score_QK = [np.zeros(0, np.float32) for _ in range(len(queries))]
    for start in range(0, rows, _BLOCK):
        number_N = np.arange(start, min(start + _BLOCK, rows))
        documents = tokens(number_N)
        for q, query_TM in enumerate(queries):
            index_C = np.append(index_QK[q], number_N)
            score_C = np.append(score_QK[q], maxsim_scores(query_TM, documents))
            best = np.argsort(-score_C, kind="stable")[:k]
            index_QK[q], score_QK[q] = index_C[best], score_C[best]
    shape = len(queries), min(k, rows)
    return Hits(np.array(index_QK, np.int64).reshape(shape), np.array(score_QK, np.float32).reshape(shape))
