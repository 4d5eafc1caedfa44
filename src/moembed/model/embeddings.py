"""What a token is before the first layer: its word, its position, its type."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import nn

from moembed.config import Strict
from moembed.model.norm import NormSpec
from moembed.model.words.compressors import Compression, compressed_table
from moembed.model.words.table import WordTable


class PositionTable(Strict):
    """Learned positions: the first token of a text reads row ``offset`` (some models start above 0)."""

    rows: int = Field(ge=1)
    offset: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _has_a_first_row(self) -> PositionTable:
        if self.offset >= self.rows:
            raise ValueError(f"the first position is row {self.offset} of a table of {self.rows}")
        return self


class EmbeddingSpec(Strict):
    """The sum of a row per word and what else there is, then a norm.

    Attributes:
        scale: what the row of a word is multiplied by.
        token_types: rows of the table of token types; a text on its own is all of the first. 0: no table.
        compression: in which form the table of words is stored and served; None: a row of floats per word.
    """

    vocabulary: int = Field(ge=1)
    scale: float = Field(default=1.0, gt=0)
    positions: PositionTable | None = None
    token_types: int = Field(default=0, ge=0)
    norm: NormSpec | None = None
    compression: Compression | None = None


def word_table(spec: EmbeddingSpec, width: int) -> nn.Embedding | WordTable:
    """The rows of the words, in the form that the spec says.

    Raises:
        UserError: a form that does not fit the vocabulary and the width.
    """
    if spec.compression is None:
        return table(spec.vocabulary, width)
    return compressed_table(spec.compression, spec.vocabulary, width)


def table(rows: int, width: int) -> nn.Embedding:
    """An embedding without values; drawing them, only to read others, would load torch's compiler."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))
