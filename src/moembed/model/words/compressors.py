"""The compressed tables of words by name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moembed.model.words.codebooks import LearnedProduct, LearnedProductConfig, Product, ProductConfig
from moembed.model.words.factors import (
    Hashed,
    HashedConfig,
    LowRank,
    LowRankConfig,
    QuotientRemainder,
    QuotientRemainderConfig,
)
from moembed.model.words.rows import Int4Config, Int4Rows, Int8Config, Int8Rows, PrunedConfig, PrunedRows
from moembed.model.words.table import WordTable
from moembed.model.words.tensor_train import TensorTrain, TensorTrainConfig

Compression = Annotated[
    Int8Config
    | Int4Config
    | PrunedConfig
    | LowRankConfig
    | ProductConfig
    | LearnedProductConfig
    | HashedConfig
    | QuotientRemainderConfig
    | TensorTrainConfig,
    Field(discriminator="method"),
]
_ALL: tuple[type[WordTable], ...] = (
    Int8Rows, Int4Rows, PrunedRows, LowRank, Product, Hashed, QuotientRemainder, TensorTrain, LearnedProduct,
)  # fmt: skip
COMPRESSORS: dict[str, type[WordTable]] = {table.method: table for table in _ALL}


def compressed_table(config: Compression, rows: int, width: int) -> WordTable:
    """The table that ``config`` describes, without values."""
    make: type = COMPRESSORS[config.method]
    made: WordTable = make(config, rows, width)
    return made
