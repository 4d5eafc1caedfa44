"""Names of metrics and figures as a page writes them."""

from __future__ import annotations

import math


def metric_name(key: str) -> str:
    name, at, cutoff = key.partition("@")
    return {"ndcg": "nDCG", "mrr": "MRR", "map": "MAP"}.get(name, name.capitalize()) + at + cutoff


def decimal(value: float, sign: str = "") -> str:
    return "–" if math.isnan(value) else f"{value:{sign}.3f}".replace("-", "−")


def interval(low: float, high: float) -> str:
    return "" if math.isnan(low) or math.isnan(high) else f"[{decimal(low)}, {decimal(high)}]"


def p_value(value: float) -> str:
    return "" if math.isnan(value) else "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def count(value: float) -> str:
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
