"""Per-query scores of several systems -> means with intervals, and differences with p-values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from moembed.evaluate.significance import stratified_bootstrap, stratified_difference

Cells = dict[str, dict[str, float]]
PerQuery = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """``metrics[system][metric]`` has value, low, high; ``differences["a-b"]`` mean, low, high, p_value."""

    metrics: dict[str, Cells]
    differences: dict[str, Cells]


def compare(*per_query: PerQuery, reference: str | None = None) -> Comparison:
    """95 % paired bootstrap intervals of every system, and every other system's difference to ``reference``.

    Args:
        per_query: ``[system][metric] -> (Q,)`` scores of the same queries; given those of several tasks, the
            means over the tasks are compared, and every task counts alike.
        reference: default: the last system.
    """
    systems = list(per_query[0])
    reference = reference or systems[-1]
    metrics: dict[str, Cells] = {system: {} for system in systems}
    differences: dict[str, Cells] = {f"{s}-{reference}": {} for s in systems if s != reference}
    for metric in per_query[0][systems[0]]:
        score_TSQ = [np.stack([task[system][metric] for system in systems]) for task in per_query]
        intervals = stratified_bootstrap(score_TSQ)
        against_TQ = [score_SQ[systems.index(reference)] for score_SQ in score_TSQ]
        for i, system in enumerate(systems):
            metrics[system][metric] = {
                "value": float(intervals.mean_S[i]),
                "low": float(intervals.low_S[i]),
                "high": float(intervals.high_S[i]),
            }
            if system != reference:
                gap = stratified_difference([score_SQ[i] for score_SQ in score_TSQ], against_TQ)
                differences[f"{system}-{reference}"][metric] = asdict(gap)
    return Comparison(metrics, differences)
