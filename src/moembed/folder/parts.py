"""What a model folder holds, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from moembed.encoding import SpaceRelation
from moembed.model.head import HeadConfig
from moembed.model.pooling import PoolingConfig
from moembed.model.spec import EncoderSpec
from moembed.tokenizer import Tokenizer


@dataclass
class Parts:
    """What a model folder holds.

    Attributes:
        files: those of the tokenizer, bytes as they are.
        source: ``config.json`` as it was read. The model is written in its layout while that can say the
            spec, else in our own; one that holds no more than a ``model_type`` asks for that layout.
        dims: prefixes of the vector that were trained to stand alone (Matryoshka).
        truncate_dim: coordinates that vectors are cut to unless a caller says otherwise; None: all are kept.
        pooling: how token states become one vector, with its tensors ``pooling_state``, if it has any.
        head: what follows pooling, with its tensors ``head_state`` by the names of ``HeadConfig.shapes``.
        similarity_fn_name: how the vectors were meant to be compared; None: nothing is said.
        relation: whose documents its queries may search beside its own; None: nobody's.
    """

    spec: EncoderSpec
    state: dict[str, Tensor]
    tokenizer: Tokenizer
    pooling: PoolingConfig
    files: dict[str, bytes] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    dims: tuple[int, ...] = ()
    similarity_fn_name: str | None = None
    head: HeadConfig = field(default_factory=HeadConfig)
    head_state: dict[str, Tensor] = field(default_factory=dict)
    truncate_dim: int | None = None
    pooling_state: dict[str, Tensor] = field(default_factory=dict)
    relation: SpaceRelation | None = None
