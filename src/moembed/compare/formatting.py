"""How numbers, names of metrics and lists are written: on pages, in sentences and on the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moembed.compare.estimates import Difference, Estimate

METRICS = {"ap": "AP", "ndcg": "nDCG", "mrr": "MRR", "map": "MAP", "v_measure": "V-measure", "hole": "Holes"}


def metric_name(key: str) -> str:
    """``ndcg@10`` -> nDCG@10; a mean over tasks of several kinds is just a score."""
    if key == "score":
        return key
    name, at, cutoff = key.partition("@")
    return METRICS.get(name, name.capitalize().replace("_", " ")) + at + cutoff


def kind_name(kind: str) -> str:
    """``pair_classification`` -> pair classification."""
    return kind.replace("_", " ")


def decimal(value: float, sign: str = "") -> str:
    return "–" if math.isnan(value) else f"{value:{sign}.3f}".replace("-", "−")


def interval(low: float, high: float) -> str:
    return "" if math.isnan(low) or math.isnan(high) else f"[{decimal(low)}, {decimal(high)}]"


def estimate(cell: Estimate) -> str:
    """``0.610 [0.600, 0.620]``."""
    return f"{decimal(cell.value)} {interval(cell.low, cell.high)}".rstrip()


def difference(cell: Difference, sign: str = "+") -> str:
    """``+0.030 [0.020, 0.040]``."""
    return f"{decimal(cell.mean, sign)} {interval(cell.low, cell.high)}".rstrip()


def p_value(value: float) -> str:
    return "" if math.isnan(value) else "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def count(value: float) -> str:
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def size(num_bytes: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def listing(parts: Sequence[str], most: int = 8) -> str:
    """``parts`` as a sentence names them; of more than ``most`` the first, and how many are left."""
    shown = list(parts)
    if len(shown) > most:
        shown = [*shown[: most - 1], f"{len(parts) - most + 1} more"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
