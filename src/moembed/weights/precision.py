"""Weights as training needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from moembed.folder.parts import Parts
from moembed.folder.reranker_parts import RerankerParts

P = TypeVar("P", Parts, RerankerParts)


def in_float32(parts: P) -> P:
    """The model with all of its floats in float32, whatever they are stored in.

    A step of training is a small part of a weight: in bfloat16 and float16 most of it is rounded away.
    """
    changes: dict[str, Any] = {"state": _floats(parts.state), "head_state": _floats(parts.head_state)}
    if isinstance(parts, Parts):
        changes["pooling_state"] = _floats(parts.pooling_state)
    return replace(parts, **changes)


def _floats(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
