"""What a model folder holds, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from moembed.model.spec import EncoderSpec
from moembed.tokenizer import Tokenizer

MODULES = ["Transformer", "Pooling", "Normalize"]
LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass
class Parts:
    """What a model folder holds.

    Attributes:
        files: those of the tokenizer, bytes as they are.
        source: ``config.json`` as it was read. The model is written in its layout while that can say the
            spec, else in our own; one that holds no more than a ``model_type`` asks for that layout.
        dims: prefixes of the vector that were trained to stand alone (Matryoshka).
        similarity_fn_name: how the vectors were meant to be compared; None: nothing is said.
    """

    spec: EncoderSpec
    state: dict[str, Tensor]
    tokenizer: Tokenizer
    pooling: str
    files: dict[str, bytes] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    dims: tuple[int, ...] = ()
    similarity_fn_name: str | None = None
