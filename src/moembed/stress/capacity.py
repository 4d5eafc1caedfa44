"""How many documents do ``d`` dimensions hold, when any two of them may be the answer to a query?

No model and no text: the vectors of ``n`` documents and of all their C(n, 2) pairs, the queries, are free,
and gradient descent moves them until every query has its two documents on top, or nothing gets better.

What it bounds. Vectors that were found prove that ``d`` dimensions can hold ``n`` documents: the count is a
lower bound of what they can hold. That a search failed proves nothing. In exact arithmetic the true bound is
3 for d = 2 and 4 for d = 3, and from d = 4 on there is none: points of the curve (cos t, sin t, cos 2t,
sin 2t) are the vertices of a cyclic polytope, of which every two are joined by an edge, so any two of them
can be on top, by a margin that shrinks with the fourth power of 1 / n. So the count says what a contrastive
loss of this temperature finds when it is given the answers; a model that reads texts is not.

Source: Weller et al., *On the Theoretical Limitations of Embedding-Based Retrieval* (2025), section 4; cyclic
polytopes: Gale, *Neighborly and cyclic polytopes* (1963).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moembed.types import UserError

TEMPERATURE = 0.1
LEARNING_RATE = 0.1  # at the start; it falls to zero in a line
STEPS = 3000
CHECK_EVERY = 20
STARTS = 2  # random ones, side by side
FIT_FROM = 4  # below, geometry and not the search decides
DEGREE = 3
PUBLISHED = (-10.5322, 4.0309, 0.0520, 0.0037)  # the paper's fit: constant, d, d², d³


@dataclass(frozen=True, slots=True)
class Point:
    """``held`` documents were placed in ``dim`` dimensions; one more was tried and not placed."""

    dim: int
    held: int


@dataclass(frozen=True, slots=True)
class CapacityGuess:
    """Documents at ``dim`` by the fit; ``low`` and ``high`` by the fits that leave a point out.

    None where there are too few points. ``published`` is what the paper's own fit says.
    """

    dim: int
    value: float | None
    low: float | None
    high: float | None
    published: float


def solves(query_QM: Tensor, document_NM: Tensor, pair_Q2: Tensor) -> Tensor:
    """Does every query score both documents of its pair strictly above all others? Leading axes are kept."""
    score_QN = query_QM.double() @ document_NM.double().mT
    index_Q2 = pair_Q2.expand(*score_QN.shape[:-1], 2)
    worst_Q = score_QN.gather(-1, index_Q2).amin(-1)
    best_other_Q = score_QN.scatter(-1, index_Q2, -torch.inf).amax(-1)
    return (worst_Q > best_other_Q).all(-1)


def place(documents: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor] | None:
    """Unit vectors ``(query_QM, document_NM, pair_Q2)`` that solve all pairs of ``documents``, or None.

    Adam on the mean over queries and their two documents of −log softmax(score / temperature) over all
    documents, every query in every step, from several random starts.
    """
    generator = torch.Generator().manual_seed(seed)
    pair_Q2 = torch.combinations(torch.arange(documents), 2)
    half_QN = torch.zeros(len(pair_Q2), documents).scatter_(-1, pair_Q2, 0.5)
    query, document = (
        torch.randn(STARTS, rows, dim, generator=generator).requires_grad_()
        for rows in (len(pair_Q2), documents)
    )
    optimiser = torch.optim.Adam([query, document], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, STEPS)
    for step in range(STEPS):
        query_QM, document_NM = F.normalize(query, dim=-1), F.normalize(document, dim=-1)
        if step % CHECK_EVERY == 0:
            with torch.no_grad():
                solved = solves(query_QM, document_NM, pair_Q2)
            if solved.any():
                start = int(solved.nonzero()[0])
                return query_QM[start].detach(), document_NM[start].detach(), pair_Q2
        log_p_QN = F.log_softmax(query_QM @ document_NM.mT / TEMPERATURE, dim=-1)
        loss = -(half_QN * log_p_QN).sum() / len(pair_Q2)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    return None


def probe(dims: Sequence[int], seed: int = 0, progress: Callable[[int], object] | None = None) -> list[Point]:
    """For each of ``dims`` the largest number of documents placed before the first that was not.

    More dimensions hold at least as many, so each begins where the one before it ended.
    ``progress`` is called with 1 after each.

    Raises:
        UserError: no dimensions, or one below 2.
    """
    if not dims or min(dims) < 2:
        raise UserError("the capacity probe needs dimensions of 2 or more")
    points: list[Point] = []
    held = 3  # three points of a circle: any two are neighbours
    for dim in sorted(set(dims)):
        while place(held + 1, dim, seed):
            held += 1
        points.append(Point(dim, held))
        if progress:
            progress(1)
    return points


def fit(points: Sequence[Point]) -> np.ndarray | None:
    """Least-squares cubic ``held ≈ c0 + c1·d + c2·d² + c3·d³``; None of too few points."""
    used = [point for point in points if point.dim >= FIT_FROM]
    if len(used) <= DEGREE:
        return None
    return np.polynomial.polynomial.polyfit([p.dim for p in used], [p.held for p in used], DEGREE)


def extrapolate(points: Sequence[Point], dim: int) -> CapacityGuess:
    """Documents at ``dim`` by the fit, by the fits that leave a point out (lowest, highest) and as published.

    An extrapolation far beyond the points is no bound: it shows the order of magnitude at best, and ``low``
    and ``high`` how little one point more or less leaves of it.
    """
    coefficients = fit(points)
    without_one = [fit([p for p in points if p != left_out]) for left_out in points]
    values = [_polynomial(c, dim) for c in without_one if c is not None]
    return CapacityGuess(
        dim=dim,
        value=None if coefficients is None else _polynomial(coefficients, dim),
        low=min(values, default=None),
        high=max(values, default=None),
        published=_polynomial(PUBLISHED, dim),
    )


def as_dict(points: Sequence[Point]) -> dict[str, Any]:
    """What a plot needs: the points and the coefficients of the fit, constant first."""
    coefficients = fit(points)
    return {
        "points": [asdict(point) for point in points],
        "fit": None if coefficients is None else coefficients.tolist(),
        "published_fit": list(PUBLISHED),
    }


def _polynomial(coefficients: Sequence[float] | np.ndarray, dim: int) -> float:
    return float(np.polynomial.polynomial.polyval(dim, coefficients))
