"""What a model folder holds, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from moembed.model.encoder import EncoderConfig
from moembed.model.head import HeadConfig
from moembed.model.pooling import Pooling
from moembed.tokenizer import Tokenizer


@dataclass
class Parts:
    """What a model folder holds.

    Attributes:
        files: those of the tokenizer, bytes as they are.
        source: ``config.json`` as it was read.
        dims: prefixes of the vector that were trained to stand alone (Matryoshka).
        head: what follows pooling, with its tensors ``head_state`` by the names of ``HeadConfig.shapes``.
        similarity_fn_name: how the vectors were meant to be compared; None: nothing is said.
    """

    config: EncoderConfig
    state: dict[str, Tensor]
    tokenizer: Tokenizer
    pooling: Pooling
    files: dict[str, bytes] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    dims: tuple[int, ...] = ()
    similarity_fn_name: str | None = None
    head: HeadConfig = field(default_factory=HeadConfig)
    head_state: dict[str, Tensor] = field(default_factory=dict)
