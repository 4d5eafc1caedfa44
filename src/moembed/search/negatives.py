"""Which of the documents near a query become its hard negatives."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from moembed.config import Strict
from moembed.types import UserError

# (score of the positive, x) -> the bound a negative's score must stay below
RULES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "relative": lambda positive_Q, x: np.minimum(x * positive_Q, positive_Q),  # x·s > s below zero
    "margin": lambda positive_Q, x: positive_Q - x,
    "max": lambda positive_Q, x: np.full_like(positive_Q, x),
}
_RANGES = {"relative": (0.0, 1.0), "margin": (0.0, 2.0), "max": (-1.0, 1.0)}


class NegativesConfig(Strict):
    """How negatives are chosen among the ``depth`` nearest documents.

    ``negatives``: so many per pair, the ``first`` or a ``random`` choice with ``seed`` of those that qualify.
    ``rules``: each ``NAME:X`` of ``RULES``; all must hold. ``skip_top``: so many nearest are left out, the
    positives not counted. ``per_document_cap``: a document serves so often, the pairs served in file order.
    ``per_query_cap``: a query text gets so many rows. ``min_negatives``: a pair with fewer is dropped.
    """

    negatives: int = Field(20, ge=1)
    rules: tuple[str, ...] = ("relative:0.95",)
    skip_top: int = Field(0, ge=0)
    per_document_cap: int | None = Field(None, ge=1)
    per_query_cap: int | None = Field(None, ge=1)
    min_negatives: int = Field(1, ge=0)
    sample: Literal["first", "random"] = "first"
    seed: int = Field(0, ge=0)

    @field_validator("rules")
    @classmethod
    def _known(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        for rule in rules:
            _parse(rule)
        return rules


def bounds(rules: Sequence[str], positive_Q: np.ndarray) -> np.ndarray:
    """The score that a negative of each query must stay below: the least that any rule allows.

    ``relative:ρ`` ρ·s, ``margin:m`` s - m, ``max:x`` x, for a positive of score s. Source: Moreira et al.,
    *NV-Retriever: Improving Text Embedding Models with Effective Hard-Negative Mining* (2024).

    Raises:
        UserError: an unknown rule, or a number it does not take.
    """
    bound_Q = np.full(len(positive_Q), np.inf)
    for name, x in map(_parse, rules):
        bound_Q = np.minimum(bound_Q, RULES[name](positive_Q, x))
    return bound_Q


class Chooser:
    """Chooses negatives for one pair after the other, minding how often each document has served.

    Attributes:
        dropped: pairs left out, by reason.
    """

    def __init__(self, config: NegativesConfig) -> None:
        self.config = config
        self.dropped = {"too few negatives": 0, "query cap": 0}
        self._served: Counter[int] = Counter()
        self._rows: Counter[int] = Counter()

    def choose(
        self, pair: int, query: int, excluded: np.ndarray, hit_K: np.ndarray, bound: float
    ) -> np.ndarray | None:
        """The hits that become negatives, nearest first; None if the pair is dropped.

        Args:
            pair, query: their numbers; that of the pair seeds the random choice.
            excluded: documents that are never its negatives, as those that answer the query.
            hit_K: its nearest documents, best first, as fields ``row`` (-1 is none) and ``score``.
            bound: of ``bounds``.
        """
        config = self.config
        if config.per_query_cap and self._rows[query] >= config.per_query_cap:
            self.dropped["query cap"] += 1
            return None
        hit_K = hit_K[(hit_K["row"] >= 0) & ~np.isin(hit_K["row"], excluded)][config.skip_top :]
        hit_K = hit_K[hit_K["score"] < bound]
        if cap := config.per_document_cap:
            free_K = [self._served[row] < cap for row in hit_K["row"].tolist()]
            hit_K = hit_K[np.array(free_K, dtype=bool)]
        if config.sample == "random" and len(hit_K) > config.negatives:
            generator = np.random.default_rng((config.seed, pair))
            hit_K = hit_K[np.sort(generator.choice(len(hit_K), config.negatives, replace=False))]
        hit_K = hit_K[: config.negatives]
        if len(hit_K) < config.min_negatives:
            self.dropped["too few negatives"] += 1
            return None
        self._rows[query] += 1
        self._served.update(hit_K["row"].tolist())
        return hit_K


def _parse(rule: str) -> tuple[str, float]:
    name, _, text = rule.partition(":")
    if name not in RULES:
        raise UserError(f"unknown rule {rule!r} (known: {', '.join(f'{known}:X' for known in RULES)})")
    low, high = _RANGES[name]
    try:
        x = float(text)
    except ValueError:
        x = math.nan
    if not low <= x <= high:
        raise UserError(f"rule {rule!r} needs a number from {low:g} to {high:g} after the colon")
    return name, x
