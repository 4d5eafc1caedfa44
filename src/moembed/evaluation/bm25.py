"""The lexical baseline that every embedding model has to beat: BM25.

Source: Robertson and Zaragoza, *The Probabilistic Relevance Framework: BM25 and Beyond* (2009), in the
variant of Lucene, computed by the library bm25s (Lù, 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from moembed.search.terms import tokenize
from moembed.types import Hits, UserError


def bm25_search(
    queries: Sequence[str], documents: Sequence[str], k: int, *, k1: float = 1.2, b: float = 0.75
) -> Hits:
    """The ``min(k, len(documents))`` best documents of every query by BM25, best first, ties by lower row.

    See ``bm25_scores`` for the formula and its parameters. A query without a known term scores 0 with every
    document and so finds the first rows.

    Raises:
        UserError: bm25s is not installed, no documents, or ``k`` below 1.
    """
    if not documents or k < 1:
        raise UserError(f"BM25 needs documents to search and k of at least 1, not {len(documents)} and {k}")
    index_QK = np.empty((len(queries), min(k, len(documents))), dtype=np.int64)
    score_QK = np.empty(index_QK.shape, dtype=np.float32)
    for row, score_N in enumerate(bm25_scores(queries, documents, k1=k1, b=b)):
        index_QK[row] = _top_rows(score_N, index_QK.shape[1])
        score_QK[row] = score_N[index_QK[row]]
    return Hits(index_QK, score_QK)


def bm25_scores(
    queries: Sequence[str], documents: Sequence[str], *, k1: float = 1.2, b: float = 0.75
) -> Iterator[np.ndarray]:
    """The scores of all documents, float32 ``(N,)``, for one query after the other.

    ``score(q, d) = Σ_t idf(t) · tf / (tf + k1 · (1 - b + b · |d| / mean |d|))`` over the terms t of q, with
    ``idf(t) = ln(1 + (N - df + ½) / (df + ½))``; defaults of ``k1`` and ``b`` as in Lucene.

    Raises:
        UserError: bm25s is not installed.
    """
    try:
        import bm25s
    except ImportError:
        raise UserError("BM25 needs the library bm25s: pip install 'moembed[eval]'") from None
    terms = [tokenize(document) for document in documents]
    engine = bm25s.BM25(method="lucene", k1=k1, b=b)
    indexed = any(terms)  # bm25s cannot index a corpus without a single term
    if indexed:
        engine.index(terms, show_progress=False)
    for query in queries:
        known = engine.get_tokens_ids(tokenize(query)) if indexed else []
        yield engine.get_scores_from_ids(known) if known else np.zeros(len(documents), dtype=np.float32)


def _top_rows(score_N: np.ndarray, k: int) -> np.ndarray:
    """Rows of the ``k`` largest scores, ties by lower row: those that reach the k-th score, stably sorted."""
    row = np.flatnonzero(score_N >= np.partition(score_N, -k)[-k])
    return row[np.argsort(-score_N[row], kind="stable")][:k]
