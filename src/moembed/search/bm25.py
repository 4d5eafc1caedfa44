"""BM25 over the parts of an index: terms of each part, statistics of all rows that are not deleted.

A library that scores a corpus as a whole has to build it again after every change. Here a part keeps the rows
of every term, and a query adds up what its few terms find in the parts, with the number of rows, their mean
length and the frequency of a term as they are at that moment: the scores are those of the whole corpus built
anew without the deleted rows.

Source: Robertson and Zaragoza, *The Probabilistic Relevance Framework: BM25 and Beyond* (2009), in the
variant of Lucene.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from moembed.files import write_whole
from moembed.search.index_parts import DamagedPartError
from moembed.search.terms import tokenize

K1, B = 1.2, 0.75  # as in Lucene


@dataclass(frozen=True, slots=True)
class Postings:
    """Which rows of a part hold which terms.

    Attributes:
        term_V: 64-bit hashes of the terms, sorted; two of a million terms collide once in 37 million times.
        end_V: the postings of a term end here; they begin where those of the term before end.
        row_P: a row that holds the term.
        count_P: how often.
        length_N: terms of every row.
    """

    term_V: np.ndarray
    end_V: np.ndarray
    row_P: np.ndarray
    count_P: np.ndarray
    length_N: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> Postings:
        """The terms of these texts; the row numbers are their places."""
        number: dict[str, int] = {}
        terms: list[int] = []
        counts: list[int] = []
        distinct_N = np.zeros(len(texts), np.int64)
        length_N = np.zeros(len(texts), np.uint32)
        for row, text in enumerate(texts):
            found = Counter(tokenize(text))
            terms += [number.setdefault(term, len(number)) for term in found]
            counts += found.values()
            distinct_N[row], length_N[row] = len(found), found.total()
        hash_V = _hashes(list(number))
        order_V = np.argsort(hash_V)
        place_V = np.empty(len(number), np.int64)
        place_V[order_V] = np.arange(len(number))
        place_P = place_V[np.array(terms, np.int64)]
        order_P = np.argsort(place_P, kind="stable")
        return cls(
            hash_V[order_V],
            np.cumsum(np.bincount(place_P, minlength=len(number))).astype(np.int64),
            np.repeat(np.arange(len(texts), dtype=np.uint32), distinct_N)[order_P],
            np.array(counts, np.uint32)[order_P],
            length_N,
        )

    def find(self, term: np.uint64) -> tuple[np.ndarray, np.ndarray]:
        """The rows that hold a term, and how often."""
        place = int(np.searchsorted(self.term_V, term))
        if place == len(self.term_V) or self.term_V[place] != term:
            return self.row_P[:0], self.count_P[:0]
        some = slice(int(self.end_V[place - 1]) if place else 0, int(self.end_V[place]))
        return self.row_P[some], self.count_P[some]

    def save(self, file: Path, advice: str) -> None:
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        write_whole(file, lambda opened: np.savez(opened, **arrays), advice)

    @classmethod
    def load(cls, file: Path) -> Postings:
        """
        Raises:
            DamagedPartError: the file is not what ``save`` wrote.
        """
        try:
            with np.load(file) as arrays:
                return cls(**{field.name: arrays[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise DamagedPartError(file, str(error)) from None


def _hashes(terms: Sequence[str]) -> np.ndarray:
    digests = (blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest() for term in terms)
    return np.frombuffer(b"".join(digests), dtype="<u8")


class Bm25:
    """Scores of all live rows of some parts, one part after the other.

    ``score(q, d) = Σ_t idf(t) · tf / (tf + k1 · (1 - b + b · |d| / mean |d|))`` over the terms t of q, each
    as often as it stands there, with ``idf(t) = ln(1 + (N - df + ½) / (df + ½))``.

    Args:
        live: numbers of the rows of each part that are not deleted, ascending.
    """

    def __init__(self, parts: Sequence[Postings], live: Sequence[np.ndarray]) -> None:
        pairs = list(zip(parts, live, strict=True))
        self._parts = list(parts)
        length_N = np.concatenate([np.zeros(0), *(part.length_N[row_K] for part, row_K in pairs)])
        self.rows = len(length_N)
        mean = length_N.mean() if length_N.any() else 1.0
        self._norm_N = K1 * (1 - B + B * length_N / mean)
        self._places: list[np.ndarray] = []  # of every row of a part among the live rows; -1: it is deleted
        start = 0
        for part, row_K in pairs:
            place_N = np.full(len(part.length_N), -1)
            place_N[row_K] = start + np.arange(len(row_K))
            self._places.append(place_N)
            start += len(row_K)

    def scores(self, query: str) -> np.ndarray:
        """float64 ``(N,)``; 0 where no term of the query stands."""
        score_N = np.zeros(self.rows)
        terms = Counter(tokenize(query))
        for term, times in zip(_hashes(list(terms)), terms.values(), strict=True):
            place_K, count_K = self._find(term)
            idf = np.log1p((self.rows - len(place_K) + 0.5) / (len(place_K) + 0.5))
            score_N[place_K] += times * idf * count_K / (count_K + self._norm_N[place_K])
        return score_N

    def _find(self, term: np.uint64) -> tuple[np.ndarray, np.ndarray]:
        """The live rows that hold a term, and how often."""
        places, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.uint32)]
        for part, place_N in zip(self._parts, self._places, strict=True):
            row_K, count_K = part.find(term)
            place_K = place_N[row_K]
            places.append(place_K[place_K >= 0])
            counts.append(count_K[place_K >= 0])
        return np.concatenate(places), np.concatenate(counts)
