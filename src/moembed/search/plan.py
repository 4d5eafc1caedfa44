"""When a condition is looked at: before the search, while it passes over the rows, or after it.

- ``pre``: the rows that meet it are found first, and they alone are scored. The least work where it leaves
  few.
- ``in``: all rows are scored where they lie, and those that do not meet it get no score. From about a third
  of the rows on this is faster than copying rows out of their files.
- ``post``: the nearest rows are found first, more than are asked for, and the condition is asked of them
  alone. The least work where nearly every row meets it. If too few of them do, the search starts again with
  ``pre`` or ``in``.

All three find the same rows. Which one is cheapest depends on the share of the rows that meet the condition,
which the samples in the parts estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["none", "pre", "in", "post"]
SMALL = 8192  # rows of an index that are not worth an estimate
IN_FROM, POST_FROM = 0.3, 0.5  # shares of the rows
FEW = 1000  # rows that are compared one by one, whatever the engine
# Comparing so many numbers takes a fourth of a millisecond, a walk through a graph half of one and more. But
# a condition is asked of all rows once, and of more rows than MANY that takes longer than many walks.
FEW_NUMBERS, MANY = 2**19, 2**18
_SURPLUS, _SPARE = 1.5, 16  # candidates of ``post``, beyond the k / share that are expected to be needed


@dataclass(frozen=True, slots=True)
class Plan:
    """How a condition was met.

    Attributes:
        kind: ``none`` where there was no condition.
        estimate: the share of the rows that the samples say meet it; None: not estimated.
        matched: the rows that meet it, where they were counted.
        fell_back: ``post``, or the approximate engine, was tried first and found too few rows.
        engine: what compared the vectors.
    """

    kind: Kind
    estimate: float | None = None
    matched: int | None = None
    fell_back: bool = False
    engine: str = "exact"

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "filter": self.kind,
            "estimated_share": None if self.estimate is None else round(self.estimate, 6),
            "rows_that_match": self.matched,
            "fell_back": self.fell_back,
            "engine": self.engine,
        }

    def __str__(self) -> str:
        if self.kind == "none":
            return f"engine: {self.engine}; no filter"
        told = {
            "pre": "the rows that meet the filter were found first, and they alone were scored",
            "in": "the filter was applied while the rows were scored",
            "post": "the nearest rows were found first, and the filter was applied to them",
        }[self.kind]
        about = "" if self.estimate is None else f"; estimated to leave {self.estimate:.1%} of the rows"
        counted = "" if self.matched is None else f"; it leaves {self.matched:,} rows"
        again = "; a first search found too few rows, so it was made again" if self.fell_back else ""
        return f"engine: {self.engine}; filter: {told}{about}{counted}{again}"

    def counted(self, matched: int, rows: int) -> Plan:
        """With the number of rows that meet the condition, which decides between ``pre`` and ``in``."""
        kind: Kind = "in" if matched >= IN_FROM * rows and rows > SMALL else "pre"
        return replace(self, kind=kind, matched=matched)


def choose(rows: int, k: int, share: float | None, ranked_by_terms: bool) -> Plan:
    """The plan for ``k`` of ``rows`` rows.

    Args:
        share: the estimated share of the rows that meet the condition; None: not known.
        ranked_by_terms: BM25 ranks the rows too: then the rows that meet the condition must all be known.
    """
    if share is None or rows <= SMALL:
        return Plan("pre", share)
    if share >= POST_FROM and not ranked_by_terms and 8 * candidates(k, share) <= rows:
        return Plan("post", share)
    return Plan("in" if share >= IN_FROM else "pre", share)


def choose_approximate(rows: int, dim: int, share: float | None, is_translated: bool) -> Plan | None:
    """The plan for the approximate engine; None: the exact search is better.

    Args:
        is_translated: whether the engine understands the condition.
    """
    if share is None or share * rows <= _few(rows, dim):
        return None
    if is_translated:
        return Plan("in", share)
    return Plan("post", share) if share >= POST_FROM else None


def _few(rows: int, dim: int) -> int:
    """Rows that are compared one by one sooner than a graph is walked."""
    return max(FEW, FEW_NUMBERS // dim) if rows <= MANY else FEW


def candidates(k: int, share: float) -> int:
    """Rows that ``post`` asks the condition of."""
    return math.ceil(_SURPLUS * k / share) + _SPARE
