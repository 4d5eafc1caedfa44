"""Hard negatives: documents that a teacher finds near a query, but not as near as its positive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from moembed.data.sources import Source, SourceConfig, load_corpus, load_source
from moembed.data.text_key import text_key
from moembed.encoding import Bar, Progress, no_bar
from moembed.files import locked
from moembed.search.engines import open_engine
from moembed.search.exact import pair_scores
from moembed.search.negatives import Chooser, NegativesConfig, bounds
from moembed.search.output import Partial, Row, pair_rows, stamps
from moembed.search.teacher import Teacher
from moembed.search.texts import Column, Distinct, distinct, endings, same_but_title
from moembed.search.vectors import RowVectors, save_array
from moembed.types import UserError

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_QUERIES = 16384  # searched at a time: what a killed run loses at most
_PAIRS = 4096  # pairs that are Python objects at a time
_HIT = np.dtype([("row", np.int32), ("score", np.float32)])


class MineConfig(NegativesConfig):
    """``depth``: nearest documents looked at. ``engine``: see ``engines.open_engine``.

    ``own_negatives`` says whether negatives that pairs have already stay, in front of the mined ones.
    """

    own_negatives: Literal["keep", "replace"] = "keep"
    depth: int = Field(100, ge=1)
    engine: str = "exact"


@dataclass(frozen=True, slots=True)
class MineSummary:
    """What was written; scores are the teacher's cosines at the ``QUANTILES``, of the rows written.

    ``mean_negatives`` counts those that were mined. ``notes`` says what was not used, and what became of the
    negatives that pairs had already.
    """

    path: Path
    pairs: int
    documents: int
    written: int
    dropped: dict[str, int]
    mean_negatives: float
    positive_scores: dict[float, float]
    negative_scores: dict[float, float]
    notes: list[str] = field(default_factory=list)


def mine(
    pairs: SourceConfig,
    out: str | Path,
    teacher: Teacher,
    config: MineConfig,
    *,
    corpus: SourceConfig | None = None,
    cache: Path | None = None,
    overwrite: bool = False,
    progress: Bar = no_bar,
) -> MineSummary:
    """Write every pair of ``pairs`` with hard negatives from ``corpus``, by default its own documents.

    The ``depth`` nearest of the distinct documents are found once per query text; documents of that query are
    taken out, with or without their title, and so is the query's own text; of the others ``config`` chooses.
    ``corpus`` is read by ``load_corpus``: ``document`` names its column, and titles are put in front.

    RowVectors (unless ``cache`` keeps them) and the documents found lie in ``out.partial`` until the file is
    whole; the same call goes on after them. How negatives are chosen from what was found may still change.

    Raises:
        UserError: unusable pairs, corpus, teacher, engine or output; one distinct document only; blocks in
            ``out.partial`` of other options; another process that writes ``out``.
    """
    if config.depth < (least := config.negatives + config.skip_top):
        raise UserError(f"depth {config.depth} is too small: {least} documents are needed at least")
    sources = [load_source(pairs)] if corpus is None else [load_corpus(corpus), load_source(pairs)]
    options = {"inputs": stamps(pairs, corpus), "teacher": teacher.identity()}
    with locked(Path(out)):
        partial = Partial(Path(out), options | {"depth": config.depth, "engine": config.engine}, overwrite)
        pool = _embed(sources, teacher, cache or partial / "vectors", progress)
        hits = _search(pool, config, partial, progress)
        rows = _Rows(sources[-1], pool, hits, config)
        with progress("writing", pool.pairs) as advance:
            rules = " and ".join(config.rules) or "least number of negatives"
            partial.finish(rows.blocks(advance), f"the rule {rules} leaves no pair with enough negatives")
    return rows.summary(Path(out), sources)


@dataclass(frozen=True, slots=True)
class _Pool:
    """Distinct queries and documents; the first ``candidates`` documents may become negatives."""

    queries: Distinct
    documents: Distinct
    query_vectors: RowVectors
    document_vectors: RowVectors
    candidates: int

    @property
    def pairs(self) -> int:
        return len(self.queries.text_N)


def _embed(sources: list[Source], teacher: Teacher, folder: Path, progress: Bar) -> _Pool:
    """The pairs are the last source; a corpus stands before them, positives that it lacks behind it."""
    queries, documents = distinct(Column("query", sources[-1:])), distinct(Column("document", sources))
    candidates = int((documents.row_U < len(sources[0])).sum())
    if candidates < 2:
        raise UserError(f"{sources[0].name} has one document only: there are no negatives in it")
    with progress("embedding", len(queries) + len(documents)) as advance:
        query_vectors = teacher.vectors(queries, folder, advance)
        document_vectors = teacher.vectors(documents, folder, advance)
    return _Pool(queries, documents, query_vectors, document_vectors, candidates)


def _search(pool: _Pool, config: MineConfig, partial: Partial, progress: Bar) -> list[np.ndarray]:
    """The nearest documents of every distinct query, mapped from a file per block."""
    engine = open_engine(config.engine, pool.document_vectors, pool.candidates)
    hits = []
    with progress("searching", len(pool.queries)) as advance:
        for start in range(0, len(pool.queries), _QUERIES):
            query_Q = np.arange(start, min(start + _QUERIES, len(pool.queries)))
            file = partial / f"hits-{start // _QUERIES:05d}.npy"
            if not file.exists():
                found = engine(pool.query_vectors(query_Q), min(config.depth, pool.candidates))
                hit_QK = np.empty(found.index.shape, dtype=_HIT)
                hit_QK["row"], hit_QK["score"] = found.index, found.score
                save_array(file, hit_QK)
            hits.append(np.load(file, mmap_mode="r"))
            advance(len(query_Q))
    return hits


class _Rows:
    """The rows to write, a block at a time, and what they came to."""

    def __init__(self, source: Source, pool: _Pool, hits: list[np.ndarray], config: MineConfig) -> None:
        self.source, self.pool, self.hits, self.config = source, pool, hits, config
        self.chooser = Chooser(config)
        self.query_N = pool.queries.text_N
        self.document_N = pool.documents.text_N[-len(source) :]
        self.own_pairs, self.own_negatives = source.count_negatives()
        self._ending_of_query, self._ending_of_document = endings(pool.queries), endings(pool.documents)
        self._by_query = np.argsort(self.query_N, kind="stable")
        self._end_U = np.cumsum(np.bincount(self.query_N))
        self._positive_scores = [np.zeros(0)]
        self._negative_scores = [np.zeros(0, dtype=np.float32)]

    def blocks(self, advance: Progress) -> Iterator[list[Row]]:
        for start in range(0, self.pool.pairs, _PAIRS):
            pair_P = np.arange(start, min(start + _PAIRS, self.pool.pairs))
            yield self._block(pair_P)
            advance(len(pair_P))

    def _block(self, pair_P: np.ndarray) -> list[Row]:
        # the teacher's score of every pair, and what a negative's must stay below
        query_PM = self.pool.query_vectors(self.query_N[pair_P])
        positive_P = pair_scores(query_PM, self.pool.document_vectors(self.document_N[pair_P]))
        bound_P = bounds(self.config.rules, positive_P)
        own = [self._own_negatives(pair) for pair in pair_P.tolist()]
        chosen = [
            self._choose(pair, bound, negatives)
            for pair, bound, negatives in zip(pair_P.tolist(), bound_P, own, strict=True)
        ]
        # the rows to write
        kept = np.array([hits is not None for hits in chosen])
        hits = [hits for hits in chosen if hits is not None]
        together = np.concatenate([np.zeros(0, dtype=_HIT), *hits])
        self._positive_scores.append(positive_P[kept])
        self._negative_scores.append(together["score"])
        texts = iter(self.pool.documents.take(together["row"]))
        had = (negatives for negatives, some in zip(own, chosen, strict=True) if some is not None)
        negatives = ([*mine, *islice(texts, len(some))] for mine, some in zip(had, hits, strict=True))
        return pair_rows(self.source, pair_P[kept], negatives)

    def _own_negatives(self, pair: int) -> list[str]:
        """The negatives a pair has already, but for those that answer its query."""
        if not self.own_pairs or self.config.own_negatives == "replace":
            return []
        had = self.source.pairs([pair])[0].negatives
        if not had:
            return []
        answers = set(map(text_key, self.pool.documents.take(self._positives(int(self.query_N[pair])))))
        return [text for text in dict.fromkeys(had) if text_key(text) not in answers]

    def _choose(self, pair: int, bound: float, own: list[str]) -> np.ndarray | None:
        query = int(self.query_N[pair])
        hit_K = self.hits[query // _QUERIES][query % _QUERIES]
        excluded = [self._positives(query), self._same_text(query, hit_K)]
        if own:
            row_K = hit_K["row"][hit_K["row"] >= 0]
            keys, known = map(text_key, self.pool.documents.take(row_K)), set(map(text_key, own))
            excluded.append(row_K[[key in known for key in keys]])
        return self.chooser.choose(pair, query, np.concatenate(excluded), hit_K, bound)

    def _same_text(self, query: int, hit_K: np.ndarray) -> np.ndarray:
        """The hits that are a document of the query with or without its title, or the text of the query."""
        positives, row_K = self._positives(query), hit_K["row"][hit_K["row"] >= 0]
        # sets, not numpy: a call of numpy costs more than a hundred look-ups
        answered = set(positives.tolist())
        known = {*self._ending_of_document[positives].tolist(), int(self._ending_of_query[query])}
        ending_K = self._ending_of_document[row_K].tolist()
        alike = zip(row_K.tolist(), ending_K, strict=True)
        rows = [row for row, ending in alike if ending in known and row not in answered]
        row_K = np.array(rows, dtype=np.int64)
        if not rows:
            return row_K
        answers = [*self.pool.documents.take(positives), *self.pool.queries.take(np.array([query]))]
        texts = self.pool.documents.take(row_K)
        return row_K[[any(same_but_title(text, answer) for answer in answers) for text in texts]]

    def _positives(self, query: int) -> np.ndarray:
        start = self._end_U[query - 1] if query else 0
        return self.document_N[self._by_query[start : self._end_U[query]]]

    def _notes(self, sources: Sequence[Source]) -> list[str]:
        notes = [f"{source.name}: {note}" for source in reversed(sources) for note in source.remarks()]
        if self.own_pairs:
            kept = self.config.own_negatives == "keep"
            became = "they stay, in front of the mined ones" if kept else "the mined ones replace them"
            what = f"{self.own_pairs:,} pairs bring {self.own_negatives:,} negatives of their own"
            notes.append(f"{what}: {became}")
        return notes

    def summary(self, path: Path, sources: Sequence[Source]) -> MineSummary:
        positive, negative = np.concatenate(self._positive_scores), np.concatenate(self._negative_scores)
        return MineSummary(
            path=path,
            pairs=self.pool.pairs,
            documents=self.pool.candidates,
            written=len(positive),
            dropped=self.chooser.dropped,
            mean_negatives=len(negative) / max(len(positive), 1),
            positive_scores=_quantiles(positive),
            negative_scores=_quantiles(negative),
            notes=self._notes(sources),
        )


def _quantiles(score: np.ndarray) -> dict[float, float]:
    if not len(score):
        return {}
    return {q: round(float(x), 4) for q, x in zip(QUANTILES, np.quantile(score, QUANTILES), strict=True)}
