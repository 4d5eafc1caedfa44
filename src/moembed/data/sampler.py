"""Which rows make up the batch of a step: a pure function of ``(seed, step)``.

Nothing is consumed, so resuming a run is a seek; and the batch is the global one, so any number of processes
cut their shares from the same rows. Each batch comes from one source, so that in-batch negatives differ in
what they say and not in where they come from (Nomic Embed, Nussbaum et al., 2024, arXiv:2402.01613).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np
from pydantic import Field

from moembed.config import Strict
from moembed.data.permutation import permute
from moembed.types import UserError

CYCLE = 1000  # steps over which the mix of sources is kept
_ORDER, _ROWS = 1, 2  # streams of random numbers drawn from one seed


class SamplingConfig(Strict):
    """How far the sizes of the sources enter the mix: see ``mix``."""

    exponent: float = Field(default=0.0, ge=0, le=10)
    cap: int | None = Field(default=None, ge=1)  # rows of a source that count


def mix(
    sizes: Sequence[int], weights: Sequence[float], exponent: float = 0.0, cap: int | None = None
) -> list[float]:
    """The weight of every source in the mix: ``weight * min(size, cap)^exponent``.

    Exponent 0 leaves the weights as they are and 1 draws every row equally often; 0.3, between them, keeps
    rare languages alive in a mix of many (XLM-R, Conneau et al., 2020, arXiv:1911.02116).
    """
    return [weight * min(size, cap or size) ** exponent for size, weight in zip(sizes, weights, strict=True)]


class Sampler:
    """Draws single-source batches; the mix of sources follows the weights as closely as whole steps allow.

    Steps fall into cycles of 1,000. Source ``s`` owns the share ``[W_{s-1}, W_s)`` of the unit interval, in
    proportion to its weight, and cycle ``c`` gives it the points ``(i + u_c) / 1000``, ``0 <= i < 1000``,
    inside: its exact share rounded down or up, 1,000 steps in all (systematic sampling; Madow, Madow 1944).
    The offset ``u_c`` is the van der Corput sequence, so the points of the first ``2^k`` cycles are again an
    even grid: over them every source is within one step of its exact share, and the rarest comes up in time.
    The order inside a cycle is random.

    Inside a source, batches are consecutive slices of a new permutation in each epoch; rows left over when no
    full batch remains sit that epoch out. The permutation is computed for the rows of the batch alone, so a
    source may have billions of rows.

    Args:
        sizes: rows per source.
        weights: relative number of batches per source, positive.
        batch_size: rows per batch, over all processes.
        seed: non-negative; another seed, another order.
        names: what errors call the sources.

    Raises:
        UserError: a source with fewer rows than a batch, a weight that is not positive, a negative seed.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        names: Sequence[str] | None = None,
    ) -> None:
        names = names or [f"number {i}" for i in range(len(sizes))]
        assert len(sizes) == len(weights) == len(names) > 0
        if batch_size < 1 or seed < 0:
            raise UserError(f"batch size {batch_size} must be at least 1 and seed {seed} at least 0")
        for name, size, weight in zip(names, sizes, weights, strict=True):
            if size < batch_size:
                raise UserError(
                    f"source {name} has {size} rows, fewer than the batch size {batch_size}; "
                    "add rows, lower the batch size or leave the source out"
                )
            if not 0 < weight < math.inf:
                raise UserError(f"source {name} has weight {weight}; a weight is a positive number")
        self._sizes = list(sizes)
        self._batch_size = batch_size
        self._seed = seed
        # Exact arithmetic on the decimals people wrote: 0.1, 0.2 and 0.7 give 100, 200 and 700 steps.
        bounds = list(accumulate(Fraction(repr(float(weight))) for weight in weights))
        self._bounds = [CYCLE * bound / bounds[-1] for bound in bounds]
        self._cycle: tuple[int, np.ndarray, np.ndarray] | None = None

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """The source of ``step`` (from 0 on) and its ``batch_size`` distinct rows, int64."""
        assert step >= 0
        cycle, place = divmod(step, CYCLE)
        order, before = self._cycle_of(cycle)
        source = int(order[place])
        drawn = int(before[source] + np.count_nonzero(order[:place] == source))
        epoch, batch = divmod(drawn, self.steps_per_epoch(source))
        places = np.arange(batch * self._batch_size, (batch + 1) * self._batch_size)
        return source, permute(places, self._sizes[source], [self._seed, _ROWS, source, epoch])

    def steps_per_epoch(self, source: int) -> int:
        """Full batches in one pass over ``source``."""
        return self._sizes[source] // self._batch_size

    @property
    def total_steps(self) -> int:
        """Full batches in one pass over each source."""
        return sum(self.steps_per_epoch(source) for source in range(len(self._sizes)))

    def steps_of_sources(self, cycles: int) -> np.ndarray:
        """How many steps each source gets in the first ``cycles`` cycles, int64.

        ``cycles`` is a sum of powers of two. The points of such a run of ``2^k`` cycles, the first of offset
        ``u``, are ``(j / 2^k + u) / 1000``, ``0 <= j < 1000 * 2^k``; ``ceil(2^k * (1000 * W_s - u))`` of them
        lie below ``W_s``.
        """
        below = [0] * len(self._bounds)
        start = 0
        for k in reversed(range(cycles.bit_length())):
            if cycles >> k & 1:
                offset = _van_der_corput(start)
                below = [
                    n + math.ceil((bound - offset) * 2**k)
                    for n, bound in zip(below, self._bounds, strict=True)
                ]
                start += 2**k
        return np.diff(np.array(below, dtype=np.int64), prepend=0)

    def _cycle_of(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """The sources of the cycle's steps in order, and the steps every source had before the cycle."""
        if self._cycle is None or self._cycle[0] != cycle:
            before = self.steps_of_sources(cycle)
            quota = self.steps_of_sources(cycle + 1) - before
            order = np.repeat(np.arange(len(quota)), quota)
            np.random.default_rng([self._seed, _ORDER, cycle]).shuffle(order)
            self._cycle = cycle, order, before
        return self._cycle[1:]


def _van_der_corput(index: int) -> Fraction:
    """The binary digits of ``index`` mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8, ..."""
    return Fraction(int(f"{index:b}"[::-1], 2), 2 ** index.bit_length())
