"""Per-query scores of several systems -> means with intervals, and differences with p-values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from moembed.evaluate.significance import bootstrap, paired_difference

Cells = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """``metrics[system][metric]`` has value, low, high; ``differences["a-b"]`` mean, low, high, p_value."""

    metrics: dict[str, Cells]
    differences: dict[str, Cells]


def compare(per_query: Mapping[str, Mapping[str, np.ndarray]], reference: str | None = None) -> Comparison:
    """95 % paired bootstrap intervals of every system, and every other system's difference to ``reference``.

    Args:
        per_query: ``[system][metric] -> (Q,)`` scores of the same queries.
        reference: default: the last system.
    """
    systems = list(per_query)
    reference = reference or systems[-1]
    metrics: dict[str, Cells] = {system: {} for system in systems}
    differences: dict[str, Cells] = {f"{s}-{reference}": {} for s in systems if s != reference}
    for metric in per_query[systems[0]]:
        intervals = bootstrap(np.stack([per_query[system][metric] for system in systems]))
        for i, system in enumerate(systems):
            metrics[system][metric] = {
                "value": float(intervals.mean_S[i]),
                "low": float(intervals.low_S[i]),
                "high": float(intervals.high_S[i]),
            }
            if system != reference:
                gap = paired_difference(per_query[system][metric], per_query[reference][metric])
                differences[f"{system}-{reference}"][metric] = asdict(gap)
    return Comparison(metrics, differences)
