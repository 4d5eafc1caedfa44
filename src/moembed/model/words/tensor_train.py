"""A table of words as a product of three small tensors."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from moembed.config import Strict
from moembed.model.words.table import FLOAT, WordTable, budget, floats, too_small
from moembed.types import UserError

_CHUNK = 256  # rows at a time: each reads a whole slice of the tensor in the middle

Three = tuple[int, int, int]


class TensorTrainConfig(Strict):
    """``rows`` and ``columns``: three numbers each, whose products are at least V, and D; ``ranks``: of the
    two seams between the tensors."""

    method: Literal["tensor_train"]
    rows: tuple[int, int, int]
    columns: tuple[int, int, int]
    ranks: tuple[int, int] = Field(description="between the first and the second, the second and the third")


class TensorTrain(WordTable):
    """``e_v[j] = A[i₁, j₁] B[i₂, j₂] C[i₃, j₃]``: matrices; i are the digits of v, j₁ j₂ j₃ those of j.

    A is (v₁, d₁, R₁), B is (v₂, R₁, d₂, R₂), C is (v₃, R₂, d₃). Source: Yin et al., *TT-Rec* (arXiv
    2101.11714); TT-SVD is that of Oseledets, *Tensor-Train Decomposition* (2011).
    """

    method: ClassVar[str] = "tensor_train"

    def __init__(self, config: TensorTrainConfig, rows: int, width: int) -> None:
        super().__init__(rows, width)
        (v1, v2, v3), (d1, d2, d3), (r1, r2) = config.rows, config.columns, config.ranks
        if min(*config.rows, *config.columns, *config.ranks) < 1:
            raise UserError("tensor_train: rows, columns and ranks are numbers from 1")
        if v1 * v2 * v3 < rows or d1 * d2 * d3 != width:
            raise UserError(f"tensor_train: {config.rows} and {config.columns} do not make {rows} x {width}")
        self.sizes = config.rows
        self.first = floats(v1, d1, r1)
        self.middle = floats(v2, r1, d2 * r2)
        self.last = floats(v3, r2, d3)

    @classmethod
    def sized(cls, rows: int, width: int, ratio: float | None, rank: int | None) -> TensorTrainConfig:
        """One rank for both seams, as far as they have so many."""
        if (ratio is None) == (rank is None):
            raise UserError("tensor_train takes a ratio or a rank, one of them")
        v, d = _near(rows), _divided(width)
        most = min(v[0] * d[0], v[2] * d[2])
        if rank is None:
            assert ratio is not None
            fitting = [r for r in range(1, most + 1) if FLOAT * _size(v, d, r) <= budget(rows, width, ratio)]
            if not fitting:
                raise too_small("tensor_train", ratio, _size(v, d, 1) / (rows * width))
            rank = fitting[-1]
        elif rank > most:
            raise UserError(f"tensor_train: a rank of {rank} is more than the {most} this table can have")
        return TensorTrainConfig(method="tensor_train", rows=v, columns=d, ranks=(rank, rank))

    @classmethod
    def from_matrix(cls, weight_VD: Tensor, config: TensorTrainConfig, seed: int = 0) -> WordTable:
        """By TT-SVD: seam by seam, the largest singular vectors of what is left."""
        made = cls(config, *weight_VD.shape)
        (v1, v2, v3), (d1, d2, d3), (r1, r2) = config.rows, config.columns, config.ranks
        padded = F.pad(weight_VD.float(), (0, 0, 0, v1 * v2 * v3 - len(weight_VD)))
        left = padded.view(v1, v2, v3, d1, d2, d3).permute(0, 3, 1, 4, 2, 5).reshape(v1 * d1, -1)
        basis = _vectors(left @ left.T, r1)
        made.first.data.copy_(basis.view(v1, d1, r1))
        rest = (basis.T @ left).view(r1, v2, d2, v3 * d3)
        right = rest.reshape(-1, v3 * d3)
        basis = _vectors(right.T @ right, r2)
        made.last.data.copy_(basis.view(v3, d3, r2).transpose(1, 2))
        middle = (right @ basis).view(r1, v2, d2, r2).transpose(0, 1)
        made.middle.data.copy_(middle.reshape(v2, r1, d2 * r2))
        return made

    def lookup(self, token_N: Tensor) -> Tensor:
        if not len(token_N):
            return self.first.new_zeros(0, self.width)
        return torch.cat([self._rows(chunk_N) for chunk_N in torch.split(token_N, _CHUNK)])

    def _rows(self, token_N: Tensor) -> Tensor:
        _, v2, v3 = self.sizes
        r2, count = self.last.shape[1], len(token_N)
        product = self.first[token_N // (v2 * v3)] @ self.middle[token_N // v3 % v2]
        return (product.view(count, -1, r2) @ self.last[token_N % v3]).flatten(1)


def _size(v: Three, d: Three, rank: int) -> int:
    return v[0] * d[0] * rank + v[1] * d[1] * rank**2 + v[2] * d[2] * rank


def _near(rows: int) -> Three:
    """Three numbers that are nearly alike and whose product is at least ``rows``."""
    first = math.ceil(rows ** (1 / 3))
    second = math.ceil(math.sqrt(rows / first))
    return first, second, -(-rows // (first * second))


def _divided(width: int) -> Three:
    """The three factors of ``width`` with the least sum."""
    found = [
        (a, b, width // (a * b))
        for a in range(1, width + 1)
        if width % a == 0
        for b in range(a, width // a + 1)
        if width // a % b == 0 and width // (a * b) >= b
    ]
    return min(found, key=sum)


def _vectors(square: Tensor, count: int) -> Tensor:
    """Eigenvectors of the largest eigenvalues of a symmetric matrix, side by side."""
    return torch.linalg.eigh(square.double()).eigenvectors[:, -count:].float().contiguous()
