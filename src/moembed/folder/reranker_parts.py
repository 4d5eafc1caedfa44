"""What a reranker's folder holds, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from moembed.model.score_head import ScoreHeadConfig
from moembed.model.spec import EncoderSpec
from moembed.tokenizer import Tokenizer

Activation = Literal["sigmoid", "identity"]


@dataclass
class RerankerParts:
    """What a reranker's folder holds.

    Attributes:
        head: what makes a logit of the states, with its tensors ``head_state``.
        activation: what makes a score of the logit.
        types: whether the model is told which tokens are the query's and which the document's.
        prompt: put in front of every query.
        files, source: as in `moembed.folder.parts.Parts`.
    """

    spec: EncoderSpec
    state: dict[str, Tensor]
    tokenizer: Tokenizer
    head: ScoreHeadConfig
    head_state: dict[str, Tensor]
    activation: Activation = "sigmoid"
    types: bool = False
    prompt: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
