"""Rotary positions as configs of transformers say them: ``rope_parameters``, or the older two keys."""

from __future__ import annotations

import math
from typing import Any

from moembed.model.rope import RopeSpec, TurnBands, YarnBands
from moembed.types import UserError

_KNOWN = ("default", "linear", "llama3", "yarn")


def read_rope(values: dict[str, Any], theta: float = 10000.0) -> RopeSpec:
    """The rotary positions of a ``config.json``; ``theta`` is the base where it names none.

    Raises:
        UserError: a kind of scaling that is not known; a part of every head that is not rotated.
    """
    # as in transformers: rope_scaling, the older name, wins
    told = values.get("rope_scaling") or values.get("rope_parameters") or {}
    kind = told.get("rope_type", told.get("type", "default"))
    if kind not in _KNOWN:
        raise UserError(f"rope_type {kind!r} is not supported (known: {', '.join(_KNOWN)})")
    part = told.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if part not in (None, 1):
        raise UserError(f"partial_rotary_factor {part!r} is not supported: whole heads are rotated")
    base = float(told.get("rope_theta") or values.get("rope_theta") or theta)
    if kind == "default":
        return RopeSpec(base=base)
    if kind == "linear":
        return RopeSpec(base=base, scaling=told["factor"])
    length = values.get("original_max_position_embeddings")
    length = length or told.get("original_max_position_embeddings") or values["max_position_embeddings"]
    if kind == "llama3":
        bands = TurnBands(
            factor=told["factor"],
            low=told["low_freq_factor"],
            high=told["high_freq_factor"],
            original_length=length,
        )
        return RopeSpec(base=base, bands=bands)
    return RopeSpec(base=base, bands=_yarn(told, length, values["max_position_embeddings"]))


def _yarn(told: dict[str, Any], length: int, longest: int) -> YarnBands:
    factor = told.get("factor") or longest / length
    if (magnitude := told.get("attention_factor")) is None:
        scale, by = told.get("mscale"), told.get("mscale_all_dim")
        magnitude = _grown(factor, scale) / _grown(factor, by) if scale and by else _grown(factor, 1)
    return YarnBands(
        factor=factor,
        low=told.get("beta_slow") or 1,
        high=told.get("beta_fast") or 32,
        original_length=length,
        magnitude=magnitude,
        whole=told.get("truncate", True),
    )


def _grown(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def write_rope(rope: RopeSpec) -> dict[str, Any]:
    """``rope_parameters`` that read as ``rope``; there are none for bands of scaled positions."""
    bands, theta = rope.bands, {"rope_theta": rope.base}
    if bands is None and rope.scaling == 1:
        return {"rope_type": "default", **theta}
    if bands is None:
        return {"rope_type": "linear", "factor": rope.scaling, **theta}
    told = {"factor": bands.factor, "original_max_position_embeddings": bands.original_length, **theta}
    if isinstance(bands, TurnBands):
        return {"rope_type": "llama3", "low_freq_factor": bands.low, "high_freq_factor": bands.high, **told}
    return {
        "rope_type": "yarn",
        "beta_slow": bands.low,
        "beta_fast": bands.high,
        "attention_factor": bands.magnitude,
        "truncate": bands.whole,
        **told,
    }
