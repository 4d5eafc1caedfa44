"""How the nearest documents are found: all compared, or an index of FAISS asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moembed.search.exact import pair_scores, search_parts, unit_rows
from moembed.search.vectors import RowVectors, parts
from moembed.types import Hits, UserError

Engine = Callable[[np.ndarray, int], Hits]  # query_QM, k -> the k nearest documents of each

_QUERIES = 256  # whose candidates' vectors are held at a time
_TRAIN_ROWS = 262_144  # documents an index of FAISS learns its cells from, at most


def open_engine(name: str, documents: RowVectors, rows: int) -> Engine:
    """Search among the first ``rows`` documents.

    ``exact`` compares every document, a block at a time. ``faiss:FACTORY[:PARAMETERS]`` asks an index such as
    ``faiss:IVF4096,Flat:nprobe=64``, held in memory; its candidates are scored again from their vectors.

    Raises:
        UserError: an unknown engine or factory, FAISS is not installed.
    """
    if name == "exact":
        return lambda query_QM, k: search_parts(query_QM, parts(documents, rows), rows, k)
    kind, _, rest = name.partition(":")
    if kind != "faiss":
        raise UserError(f"unknown engine {name!r} (known: exact, faiss:FACTORY, as in faiss:IVF4096,Flat)")
    factory, _, parameters = rest.partition(":")
    index = _faiss_index(factory or "Flat", parameters, documents, rows)
    return lambda query_QM, k: _faiss_search(index, query_QM, k, documents)


def _faiss_index(factory: str, parameters: str, documents: RowVectors, rows: int) -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError("the engine faiss needs FAISS: pip install 'moembed[mine]'") from None
    dim = documents(np.arange(1)).shape[1]
    sample = np.random.default_rng(0).permutation(rows)[:_TRAIN_ROWS]
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        if parameters:
            settings: Any = faiss.ParameterSpace()
            settings.set_index_parameters(index, parameters)
        if not index.is_trained:
            index.train(_narrow(documents(np.sort(sample))))
    except RuntimeError as error:
        reason = str(error).rpartition("Error: ")[2].strip()
        raise UserError(f"FAISS cannot make an index {factory} {parameters}: {reason}") from None
    for part_NM in parts(documents, rows):
        index.add(_narrow(part_NM))
    return index


def _faiss_search(index: Any, query_QM: np.ndarray, k: int, documents: RowVectors) -> Hits:
    """The index picks candidates, the vectors score them; places it leaves open hold row -1, last."""
    row_QK = index.search(_narrow(query_QM), k)[1]
    score_QK = np.empty(row_QK.shape, dtype=np.float32)
    for start in range(0, len(query_QM), _QUERIES):
        some = slice(start, start + _QUERIES)
        repeated = np.repeat(query_QM[some], row_QK.shape[1], axis=0)
        score = pair_scores(repeated, documents(np.maximum(row_QK[some].ravel(), 0)))
        score_QK[some] = score.reshape(row_QK[some].shape)
    score_QK[row_QK < 0] = -np.inf
    order = np.lexsort((row_QK, -score_QK), axis=1)
    return Hits(np.take_along_axis(row_QK, order, axis=1), np.take_along_axis(score_QK, order, axis=1))


def _narrow(vector_NM: np.ndarray) -> np.ndarray:
    return unit_rows(vector_NM, "vector").astype(np.float32)
