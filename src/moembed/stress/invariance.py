"""What should not change a vector: the texts beside it, their order and length. What may: upper case.

``Embedder`` promises that a row depends on its own text alone; here is by how much rounding breaks that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moembed.stress.subject import Subject
from moembed.stress.texts import CITIES, FACTS, FILLER

# Largest difference of a coordinate that is still rounding: other shapes add numbers in another order.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2, "int8": 2e-2}
CASINGS = {"lower": str.lower, "upper": str.upper, "title": str.title}
STATEMENTS = tuple(statement for statement, _ in FACTS)
TEXTS = (
    "",
    *CITIES[:4],
    *STATEMENTS[:8],
    *(" ".join(FILLER[:count]) for count in (2, 3, 5, 8, 13)),
    "東京は雨です。",
    "Où est la gare ?",
    "🙂 1,234.56 €",
)
LONG = " ".join(FILLER)


@dataclass(frozen=True, slots=True)
class Closeness:
    """How near vectors are to those of the same texts by themselves."""

    max_difference: float
    min_cosine: float


@dataclass(frozen=True, slots=True)
class InvarianceScores:
    """What other texts of a batch, and casing, do to the vectors of a model.

    Attributes:
        tolerance: largest difference of a coordinate that rounding explains in ``dtype``.
        steady: whether no difference is larger.
        company: by which other texts stood beside.
        casing: by the case of the letters, mean and quantiles of the cosines with the text itself.
    """

    dtype: str
    tolerance: float
    steady: bool
    company: dict[str, Closeness]
    casing: dict[str, dict[str, float]]


def measure(subject: Subject) -> InvarianceScores | None:
    """What other texts and casing do to the vectors of ``TEXTS``; None where a text has not one vector."""
    if subject.model is None or not subject.has_vectors:
        return None
    dtype = subject.model.dtype
    company = _company(subject)
    return InvarianceScores(
        dtype=dtype,
        tolerance=TOLERANCE[dtype],
        steady=all(check.max_difference <= TOLERANCE[dtype] for check in company.values()),
        company=company,
        casing=_casing(subject),
    )


def _company(subject: Subject) -> dict[str, Closeness]:
    """Each text by itself against the same text among others."""
    texts = list(TEXTS)
    alone_BM = _alone(subject, texts)
    vectors = {
        "again": _alone(subject, texts),
        "batch-mates": _encode(subject, texts),
        "order": _encode(subject, texts[::-1])[::-1],
        "longer batch-mates": _encode(subject, [LONG, *texts, LONG])[1:-1],
    }
    return {name: _closeness(alone_BM, vector_BM) for name, vector_BM in vectors.items()}


def _casing(subject: Subject) -> dict[str, dict[str, float]]:
    """Cosines of texts with themselves in other letters and, to read them by, with all the other texts."""
    texts = [*CITIES, *STATEMENTS]
    vector_BM = _encode(subject, texts)
    cosines = {
        name: (vector_BM * _encode(subject, [change(text) for text in texts])).sum(axis=1)
        for name, change in CASINGS.items()
    }
    cosines["another text"] = (vector_BM @ vector_BM.T)[~np.eye(len(texts), dtype=bool)]
    return {name: _distribution(cosine_B) for name, cosine_B in cosines.items()}


def _alone(subject: Subject, texts: list[str]) -> np.ndarray:
    return np.concatenate([_encode(subject, [text]) for text in texts])


def _encode(subject: Subject, texts: list[str]) -> np.ndarray:
    """The text itself, without a prompt: what LONG is cut at does not matter here."""
    assert subject.model
    return subject.model.vectors(texts, role="document", prompt="", progress=subject.advance).array


def _closeness(a_BM: np.ndarray, b_BM: np.ndarray) -> Closeness:
    return Closeness(float(np.abs(a_BM - b_BM).max()), float((a_BM * b_BM).sum(axis=1).min()))


def _distribution(cosine_B: np.ndarray) -> dict[str, float]:
    low, middle, high = np.quantile(cosine_B, [0.05, 0.5, 0.95])
    return {
        "mean": float(cosine_B.mean()),
        "min": float(cosine_B.min()),
        "5%": float(low),
        "50%": float(middle),
        "95%": float(high),
    }
