"""How an index finds rows: a condition by its plan, vectors exactly, and words where they are asked for."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moembed.encoding import TokenVectors
from moembed.search import plan as planning
from moembed.search.exact import pair_scores, search_parts
from moembed.search.hybrid import best_terms, by_ranks, by_weight, window
from moembed.search.late_search import ENGINE, best_products, late_scan, late_search, num_candidates
from moembed.search.matches import Matches
from moembed.search.plan import Plan
from moembed.search.where import Where, comparisons
from moembed.search.where_mask import mask
from moembed.types import Hits

if TYPE_CHECKING:
    from moembed.search.ann import AnnSearcher
    from moembed.search.columns import Meets
    from moembed.search.index_reader import PartReader

_SHARES = 256  # conditions whose share is remembered
_UNKNOWN: Final = "unknown"  # None is a share that no sample tells
_UNCOVERED: Final = "uncovered"  # rows that the engine does not know are kept apart


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked for.

    Attributes:
        texts: of the queries, for a search by words too; None: by vectors alone.
        weight: see `moembed.search.hybrid`.
        plan: the kind of plan to use; None: the cheapest.
        tokens: of the queries, in a multi-vector index, where ``query_QM`` are their encodings; None: rows
            have one vector each.
        exact: give all rows a score, also where an engine or encodings would choose some.
    """

    query_QM: np.ndarray
    k: int
    where: Where | None = None
    texts: Sequence[str] | None = None
    weight: float | None = None
    plan: planning.Kind | None = None
    tokens: TokenVectors | None = None
    exact: bool = False

    @classmethod
    def of(
        cls,
        queries: np.ndarray | TokenVectors,
        k: int,
        where: Where | None,
        texts: Sequence[str] | None,
        weight: float | None,
    ) -> Search:
        """What is looked for, before queries are as rows are compared with them."""
        if isinstance(queries, TokenVectors):
            nothing_Q0 = np.zeros((len(queries), 0), np.float32)
            return cls(nothing_Q0, k, where, texts, weight, tokens=queries)
        return cls(queries, k, where, texts, weight)


def find(reader: PartReader, search: Search, ann: AnnSearcher | None = None) -> tuple[Hits, Plan]:
    """The best rows of every query, as numbers among those that are not deleted, and how they were found.

    Args:
        ann: the approximate engine, where it is to be asked.
    """
    # BM25 needs all rows that meet a condition: then the exact search has the work already
    by_words = search.texts is not None and search.where is not None
    if ann is None or search.exact or search.plan is not None or by_words:
        found, how = _exactly(reader, search)
        return found, how if search.tokens is None or search.exact else replace(how, engine=ENGINE)
    plan, condition = _approximate_plan(reader, search, ann)
    if plan is None:
        return _exactly(reader, search)
    hits = _approximately(reader, search, ann, plan, condition)
    if hits is not None:
        return (hits if search.texts is None else _fused(reader, search, hits, None)), plan
    hits, plan = _exactly(reader, search)
    return hits, replace(plan, fell_back=True)


def _exactly(reader: PartReader, search: Search) -> tuple[Hits, Plan]:
    if search.where is None:
        hits = _among(reader, search, None)
        return (hits if search.texts is None else _fused(reader, search, hits, None)), Plan("none")
    names, test = _test(search.where)
    plan = _plan(reader, search, names, test)
    if plan.kind == "post":
        hits, enough = _post(reader, search, search.where, plan)
        if enough:
            return hits, plan
        plan = replace(plan, fell_back=True)
    matches = _matches(reader, search.where, names, test)
    counted = plan.counted(len(matches), len(reader))
    if search.plan in ("pre", "in"):
        counted = replace(counted, kind=search.plan)
    hits = _among(reader, search, matches, gather=counted.kind == "pre")
    return (hits if search.texts is None else _fused(reader, search, hits, matches)), counted


def _matches(reader: PartReader, where: Where, names: list[str], test: Meets) -> Matches:
    """The rows that meet a condition, kept for the next search."""
    matches = reader.kept.get(where)
    if matches is None:
        matches = Matches(np.flatnonzero(reader.rows_of_columns.meets(names, test)))
        reader.kept.put(where, matches)
    return matches


def _meet(reader: PartReader, where: Where, row_C: np.ndarray) -> np.ndarray:
    """Which of some rows meet a condition: bool ``(C,)``."""
    matches = reader.kept.get(where)
    if matches is None and reader.kept.room(len(reader), 0) and reader.kept.again(where):
        matches = _matches(reader, where, *_test(where))
    if matches is not None:
        return matches.hold(row_C)
    return reader.rows_of_columns.meets_at(*_test(where), row_C)


def _nearest_of(
    reader: PartReader, query_QM: np.ndarray, matches: Matches, depth: int, key: Hashable
) -> Hits:
    """The nearest of some rows, whose vectors are kept under a key where they are few."""
    row_K = matches.row_K
    if matches.vector_KM is None and reader.kept.room(len(row_K), reader.width):
        matches = Matches(row_K, reader.vectors_at(row_K), reader.norms_at(row_K))
        reader.kept.put(key, matches)
    if matches.vector_KM is not None and matches.norm_K is not None:
        hits = search_parts(query_QM, [matches.vector_KM], len(row_K), depth, [matches.norm_K])
    else:
        vectors, norms = reader.gathered(row_K), reader.gathered_norms(row_K)
        hits = search_parts(query_QM, vectors, len(row_K), depth, norms)
    return Hits(row_K[hits.index], hits.score)


def _test(where: Where) -> tuple[list[str], Meets]:
    return sorted({one.column for one in comparisons(where)}), lambda column, rows: mask(where, column, rows)


def _plan(reader: PartReader, search: Search, names: list[str], test: Meets) -> Plan:
    share = _share(reader, search.where, names, test)
    if search.plan is not None:
        return Plan(search.plan, share)
    return planning.choose(len(reader), search.k, share, search.texts is not None)


def _share(reader: PartReader, where: Where | None, names: list[str], test: Meets) -> float | None:
    """The share of the rows that meet a condition, as the samples say; kept for the next search."""
    if len(reader) <= planning.SMALL or reader.samples is None or where is None:
        return None
    share = reader.shares.get(where, _UNKNOWN)
    if isinstance(share, str):
        share = reader.samples.share(names, test)
        if len(reader.shares) >= _SHARES:  # another thread may do so at any moment
            reader.shares.clear()
        reader.shares[where] = share
    return share


def _approximate_plan(reader: PartReader, search: Search, ann: AnnSearcher) -> tuple[Plan | None, Any]:
    """The plan for the approximate engine, and the condition in its terms; None: search exactly."""
    if search.where is None:
        return Plan("none", engine=ann.record.engine), None
    share = _share(reader, search.where, *_test(search.where))
    condition = ann.condition(search.where)
    plan = planning.choose_approximate(len(reader), reader.width, share, condition is not None)
    return (None if plan is None else replace(plan, engine=ann.record.engine)), condition


def _approximately(
    reader: PartReader, search: Search, ann: AnnSearcher, plan: Plan, condition: Any
) -> Hits | None:
    """The nearest rows that meet the condition; None: fewer than ``k`` were found for a query."""
    depth = min(_depth(search), len(reader)) if search.where is None else _depth(search)
    wanted = planning.candidates(depth, plan.estimate or 1.0) if plan.kind == "post" else depth
    found = ann.nearest(search.query_QM, wanted, condition if plan.kind == "in" else None)
    if search.where is not None:  # also of what the engine has filtered: a hit never breaks the filter
        good = _meet(reader, search.where, np.concatenate([np.zeros(0, np.int64), *found]))
        goods = np.split(good, np.cumsum([0, *map(len, found)]))[1:-1]
        found = [row_C[good_C] for row_C, good_C in zip(found, goods, strict=True)]
    others = _uncovered(reader, search.where, ann)
    if len(others):
        more = _nearest_of(reader, search.query_QM, others, depth, (_UNCOVERED, search.where))
        found = [np.append(row_C, more.index[q]) for q, row_C in enumerate(found)]
    if min(map(len, found), default=depth) < depth:
        return None
    index_QK = np.empty((len(found), depth), np.int64)
    score_QK = np.empty(index_QK.shape, np.float32)
    for q, (row_C, score_C) in enumerate(zip(found, ann.rescored(search.query_QM, found), strict=True)):
        order_K = np.lexsort((row_C, -score_C))[:depth]
        index_QK[q], score_QK[q] = row_C[order_K], score_C[order_K]
    return Hits(index_QK, score_QK)


def _uncovered(reader: PartReader, where: Where | None, ann: AnnSearcher) -> Matches:
    """The rows that the engine does not know and that meet the condition."""
    row_K = ann.uncovered
    if not len(row_K):
        return Matches(row_K)
    matches = reader.kept.get((_UNCOVERED, where))
    if matches is None:
        matches = Matches(row_K if where is None else row_K[_meet(reader, where, row_K)])
        reader.kept.put((_UNCOVERED, where), matches)
    return matches


def _depth(search: Search) -> int:
    return search.k if search.texts is None else window(search.k)


def _among(reader: PartReader, search: Search, matches: Matches | None, gather: bool = False) -> Hits:
    """The nearest rows among those that meet the condition."""
    depth = _depth(search)
    if search.tokens is not None:
        return _late(reader, search, search.tokens, matches)
    if matches is not None and gather:
        return _nearest_of(reader, search.query_QM, matches, depth, search.where)
    depth = min(depth, len(reader) if matches is None else len(matches))
    if not depth:
        nothing = np.zeros((len(search.query_QM), 0))
        return Hits(nothing.astype(np.int64), nothing.astype(np.float32))
    keep = None if matches is None else reader.split(matches.flags(len(reader)))
    return search_parts(search.query_QM, reader.vectors(), len(reader), depth, reader.norms(), keep)


def _late(reader: PartReader, search: Search, tokens: TokenVectors, matches: Matches | None) -> Hits:
    """The best rows by MaxSim among those that meet the condition."""
    row_N = np.arange(len(reader)) if matches is None else matches.row_K
    depth = _depth(search)
    if search.exact:
        hits = late_scan(tokens, len(row_N), lambda place_C: reader.tokens_at(row_N[place_C]), depth)
        return Hits(row_N[hits.index], hits.score)
    vectors = reader.vectors() if matches is None else reader.gathered(row_N)
    candidate_QC = best_products(search.query_QM, vectors, num_candidates(depth))
    hits = late_search(tokens, candidate_QC, lambda place_C: reader.tokens_at(row_N[place_C]), depth)
    return Hits(row_N[hits.index], hits.score)


def _post(reader: PartReader, search: Search, where: Where, plan: Plan) -> tuple[Hits, bool]:
    """The nearest rows that meet the condition, and whether ``k`` were found for every query."""
    wanted = planning.candidates(search.k, plan.estimate or 1.0)
    found = _among(reader, replace(search, k=wanted), None)
    row_U, place = np.unique(found.index, return_inverse=True)
    good_QC = _meet(reader, where, row_U)[place].reshape(found.index.shape)
    if (good_QC.sum(axis=1) < search.k).any():
        return found, False
    order_QK = np.argsort(~good_QC, axis=1, kind="stable")[:, : search.k]  # good ones first
    index_QK = np.take_along_axis(found.index, order_QK, axis=1)
    return Hits(index_QK, np.take_along_axis(found.score, order_QK, axis=1)), True


def _fused(reader: PartReader, search: Search, hits: Hits, matches: Matches | None) -> Hits:
    """The best rows by vectors and BM25 together."""
    assert search.texts is not None
    row_N = np.arange(len(reader)) if matches is None else matches.row_K
    shape = len(search.texts), min(search.k, len(row_N))
    found = [_fused_one(reader, search, q, row_N, hits.index[q]) for q in range(len(search.texts))]
    index_QK = np.array([row_K for row_K, _ in found], np.int64).reshape(shape)
    return Hits(index_QK, np.array([score_K for _, score_K in found], np.float32).reshape(shape))


def _fused_one(
    reader: PartReader, search: Search, q: int, row_N: np.ndarray, nearest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    assert search.texts is not None
    term_N = reader.bm25.scores(search.texts[q])[row_N]
    ranked = row_N[best_terms(term_N, window(search.k))]
    if search.weight is None:
        return by_ranks([nearest, ranked], search.k)
    row_C = np.union1d(nearest, ranked)
    query_CM = np.repeat(search.query_QM[q : q + 1], len(row_C), axis=0)
    cosine_C = pair_scores(query_CM, reader.vectors_at(row_C))
    share_C = term_N[np.searchsorted(row_N, row_C)] / max(term_N.max(initial=0), np.finfo(float).tiny)
    return by_weight(row_C, cosine_C, share_C, search.weight, search.k)
