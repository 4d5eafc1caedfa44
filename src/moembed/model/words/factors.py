"""Tables whose rows share parameters: products of smaller matrices, and rows that several words have."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from moembed.config import Strict
from moembed.model.words.table import FLOAT, WordTable, budget, floats, need_ratio, too_small
from moembed.types import UserError

_PRIME = 2**31 - 1  # of the hash: more than any vocabulary has words
_ROUNDS = 10  # of alternating least squares


class LowRankConfig(Strict):
    method: Literal["low_rank"]
    rank: int = Field(ge=1)


class HashedConfig(Strict):
    """``seed``: of the function that gives every word one of ``buckets`` rows."""

    method: Literal["hash"]
    buckets: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)


class QuotientRemainderConfig(Strict):
    """``remainders``: rows of the first table, and the number that token ids are divided by."""

    method: Literal["quotient_remainder"]
    remainders: int = Field(ge=1)


class LowRank(WordTable):
    """``W ≈ U B``: U is (V, R), B is (R, D). Source: the singular value decomposition."""

    method: ClassVar[str] = "low_rank"

    def __init__(self, config: LowRankConfig, rows: int, width: int) -> None:
        super().__init__(rows, width)
        if config.rank > width:
            raise UserError(f"low_rank: a rank of {config.rank} is more than the width {width}")
        self.factor_VR = floats(rows, config.rank)
        self.basis_RD = floats(config.rank, width)

    @classmethod
    def sized(cls, rows: int, width: int, ratio: float | None, rank: int | None) -> LowRankConfig:
        if rank is None:
            ratio = _ratio_or_rank("low_rank", ratio)
            rank = int(budget(rows, width, ratio) // (FLOAT * (rows + width)))
            if rank < 1:
                raise too_small("low_rank", ratio, (rows + width) / (rows * width))
            rank = min(rank, width)
        elif ratio is not None:
            raise UserError("low_rank takes a ratio or a rank, not both")
        elif rank > width:
            raise UserError(f"low_rank: a rank of {rank} is more than the {width} this table can have")
        return LowRankConfig(method="low_rank", rank=rank)

    @classmethod
    def from_matrix(cls, weight_VD: Tensor, config: LowRankConfig, seed: int = 0) -> WordTable:
        """The nearest matrix of this rank: the rows along the largest eigenvectors of ``WᵀW``."""
        made = cls(config, *weight_VD.shape)
        basis_RD = _largest(weight_VD.T.double() @ weight_VD.double(), config.rank).T.float()
        made.basis_RD.data.copy_(basis_RD)
        made.factor_VR.data.copy_(weight_VD.float() @ basis_RD.T)
        return made

    def lookup(self, token_N: Tensor) -> Tensor:
        return self.factor_VR[token_N] @ self.basis_RD


class Hashed(WordTable):
    """Words share rows by chance: ``e_v = E[((a v + b) mod p) mod M]``, p = 2³¹ − 1.

    Source: feature hashing, Weinberger et al. (arXiv 0902.2206); the hash is that of Carter and Wegman.
    """

    method: ClassVar[str] = "hash"
    by_training: ClassVar[bool] = True

    def __init__(self, config: HashedConfig, rows: int, width: int) -> None:
        super().__init__(rows, width)
        random = np.random.default_rng(config.seed)
        self.factor, self.shift = int(random.integers(1, _PRIME)), int(random.integers(_PRIME))
        self.table_MD = floats(config.buckets, width)

    @classmethod
    def sized(cls, rows: int, width: int, ratio: float | None, rank: int | None) -> HashedConfig:
        ratio = need_ratio("hash", ratio, rank)
        if (buckets := int(ratio * rows)) < 1:
            raise too_small("hash", ratio, 1 / rows)
        return HashedConfig(method="hash", buckets=buckets)

    @classmethod
    def from_matrix(cls, weight_VD: Tensor, config: HashedConfig, seed: int = 0) -> WordTable:
        """By least squares: a shared row is the mean of those it stands for."""
        made = cls(config, *weight_VD.shape)
        bucket_V = made.bucket(torch.arange(made.rows))
        count_M = bucket_V.bincount(minlength=config.buckets).clamp(min=1)
        sum_MD = torch.zeros(config.buckets, made.width).index_add_(0, bucket_V, weight_VD.float())
        made.table_MD.data.copy_(sum_MD / count_M[:, None])
        return made

    def bucket(self, token_N: Tensor) -> Tensor:
        return (self.factor * token_N + self.shift) % _PRIME % len(self.table_MD)

    def lookup(self, token_N: Tensor) -> Tensor:
        return self.table_MD[self.bucket(token_N)]


class QuotientRemainder(WordTable):
    """``e_v = A[v mod m] ⊙ B[v div m]``: no two words have the same pair of rows.

    Source: Shi et al., *Compositional Embeddings Using Complementary Partitions* (arXiv 1909.02107).
    """

    method: ClassVar[str] = "quotient_remainder"
    by_training: ClassVar[bool] = True

    def __init__(self, config: QuotientRemainderConfig, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.divisor = config.remainders
        self.remainder_MD = floats(config.remainders, width)
        self.quotient_QD = floats(-(-rows // config.remainders), width)

    @classmethod
    def sized(cls, rows: int, width: int, ratio: float | None, rank: int | None) -> QuotientRemainderConfig:
        ratio = need_ratio("quotient_remainder", ratio, rank)
        fitting = (m for m in range(int(ratio * rows), 0, -1) if m + -(-rows // m) <= ratio * rows)
        if (remainders := next(fitting, None)) is None:
            raise too_small("quotient_remainder", ratio, (2 * math.sqrt(rows) + 1) / rows)
        return QuotientRemainderConfig(method="quotient_remainder", remainders=remainders)

    @classmethod
    def from_matrix(cls, weight_VD: Tensor, config: QuotientRemainderConfig, seed: int = 0) -> WordTable:
        """By alternating least squares, from quotients of one."""
        made = cls(config, *weight_VD.shape)
        token_V = torch.arange(made.rows)
        a, b = made.remainder_MD.data, made.quotient_QD.data.fill_(1)
        place_a, place_b, weight_VD = token_V % made.divisor, token_V // made.divisor, weight_VD.float()
        for _ in range(_ROUNDS):
            _fit(a, place_a, weight_VD, b[place_b])
            _fit(b, place_b, weight_VD, a[place_a])
        return made

    def lookup(self, token_N: Tensor) -> Tensor:
        return self.remainder_MD[token_N % self.divisor] * self.quotient_QD[token_N // self.divisor]


def _fit(table: Tensor, place_V: Tensor, weight_VD: Tensor, other_VD: Tensor) -> None:
    """``table[place]`` times ``other`` nearest to ``weight``, coordinate by coordinate."""
    product = torch.zeros_like(table).index_add_(0, place_V, weight_VD * other_VD)
    square = torch.zeros_like(table).index_add_(0, place_V, other_VD.square())
    table.copy_(product / square.clamp(min=1e-20))


def _ratio_or_rank(method: str, ratio: float | None) -> float:
    if ratio is None:
        raise UserError(f"{method} needs a ratio, the share of the bytes in float32, or a rank")
    return ratio


def _largest(square_DD: Tensor, count: int) -> Tensor:
    """Eigenvectors ``(D, count)`` of the largest eigenvalues of a symmetric matrix."""
    return torch.linalg.eigh(square_DD).eigenvectors[:, -count:]
