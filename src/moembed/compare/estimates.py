"""A score with its interval, and the difference of two scores with its interval and p-values."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """``a - b``, the ends of its interval, a two-sided p-value and the effect size.

    ``p_holm`` is the p-value after Holm's correction for all differences that are looked at together; for a
    single difference it is the p-value itself. ``verdict.is_real`` goes by it.
    ``effect`` is Cohen's d of paired differences: the mean over items of ``a - b`` in units of its standard
    deviation from item to item. That deviation is taken as √Q times the standard error of the resamples, so
    that there is one for correlations and for means over tasks too (Q: items of all tasks). 0 where no
    resample differs.
    """

    mean: float
    low: float
    high: float
    p_value: float
    p_holm: float
    effect: float

    def turned(self) -> Difference:
        """``b - a``; subtracted from 0 and not negated, which would make zero −0."""
        return replace(self, mean=0 - self.mean, low=0 - self.high, high=0 - self.low, effect=0 - self.effect)
