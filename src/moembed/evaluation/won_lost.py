"""Which queries one system answers better than another, and which worse."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from moembed.compare.scores import MAIN, Scores

SHOWN = 5  # queries of each side
_LONGEST = 200  # characters of a query that are kept


@dataclass(frozen=True, slots=True)
class QueryScores:
    """A query, cut to 200 characters, and what the reference and the other system score on it."""

    query: str
    reference: float
    other: float


@dataclass(frozen=True, slots=True)
class WonLost:
    """How many queries the reference answers better than another system, how many worse, how many alike.

    ``most_won`` and ``most_lost`` are those with the largest differences, at most five each.
    """

    won: int
    lost: int
    alike: int
    most_won: list[QueryScores] = field(default_factory=list)
    most_lost: list[QueryScores] = field(default_factory=list)


def won_and_lost(texts: Mapping[str, str], reference: Scores, other: Scores) -> WonLost | None:
    """Both systems query by query, under the main metric of their task.

    Args:
        texts: of the queries, by item.

    Returns:
        None where the metric is no value per item (a correlation), or nothing can be compared.
    """
    metric = MAIN[reference.kind]
    if metric not in reference.values or metric not in other.values or reference.values[metric].ndim > 1:
        return None
    theirs = dict(zip(other.item, other.values[metric].tolist(), strict=True))
    pairs = zip(reference.item, reference.values[metric].tolist(), strict=True)
    both = [(item, ours, theirs[item]) for item, ours in pairs if item in theirs]
    if not both:
        return None
    gap_Q = np.array([ours - their for _, ours, their in both])
    order = np.argsort(-gap_Q, kind="stable")  # of equal gaps the earlier query comes first
    won, lost = int((gap_Q > 0).sum()), int((gap_Q < 0).sum())

    def shown(rows: np.ndarray) -> list[QueryScores]:
        found = []
        for row in rows.tolist():
            item, ours, their = both[row]
            text = textwrap.shorten(texts.get(item, item), _LONGEST, placeholder=" …")
            found.append(QueryScores(text, round(ours, 4), round(their, 4)))
        return found

    return WonLost(
        won=won,
        lost=lost,
        alike=len(both) - won - lost,
        most_won=shown(order[: min(won, SHOWN)]),
        most_lost=shown(np.argsort(gap_Q, kind="stable")[: min(lost, SHOWN)]),
    )
