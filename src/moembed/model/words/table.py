"""What every compressed table of words is: rows on demand, and how large it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from moembed.types import UserError

FLOAT = 4  # bytes of a float32
_BLOCK = 8192  # rows that are made at a time where all are wanted


class WordTable(nn.Module, ABC):
    """A matrix of words ``(V, D)`` in another form; calling it gives rows, as of ``nn.Embedding``.

    Floats are parameters: they learn, and have the dtype of the model. Codes are whole numbers in buffers:
    they stay what they are. Nothing makes the whole matrix but ``weight``.

    Attributes:
        method: its name in configs.
        by_training: whether the form says so little of a given matrix that it is to be trained.
    """

    method: ClassVar[str]
    by_training: ClassVar[bool] = False

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rows, self.width = rows, width

    @classmethod
    @abstractmethod
    def sized(cls, rows: int, width: int, ratio: float | None, rank: int | None) -> Any:
        """The config of the largest table within ``ratio`` of the bytes of the matrix in float32.

        Raises:
            UserError: there is none so small, or a size that the method does not have.
        """

    @classmethod
    @abstractmethod
    def from_matrix(cls, weight_VD: Tensor, config: Any, seed: int = 0) -> WordTable:
        """The table nearest to a matrix, or near it, as the class says."""

    def damage(self) -> str | None:
        """What is wrong with codes that no row can be made of; None: nothing is."""
        return None

    @abstractmethod
    def lookup(self, token_N: Tensor) -> Tensor:
        """Rows ``(N, D)`` of token ids."""

    def forward(self, token_T: Tensor) -> Tensor:
        """Rows ``(T, D)``; each is computed once, however often its word occurs."""
        distinct_N, place_T = torch.unique(token_T, return_inverse=True)
        return self.lookup(distinct_N)[place_T]

    def blocks(self) -> Iterator[Tensor]:
        """The whole matrix, some rows at a time."""
        device = next(self.parameters()).device
        for start in range(0, self.rows, _BLOCK):
            yield self.lookup(torch.arange(start, min(start + _BLOCK, self.rows), device=device))

    @property
    def weight(self) -> Tensor:
        """The whole matrix ``(V, D)``, made anew at every call."""
        return torch.cat(list(self.blocks()))

    @property
    def num_bytes(self) -> int:
        """Of all that is stored, on disk and in memory, in the dtypes it has now."""
        return sum(tensor.nbytes for tensor in chain(self.parameters(), self.buffers()))


def floats(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


def budget(rows: int, width: int, ratio: float) -> float:
    """Bytes that a table may take."""
    return ratio * rows * width * FLOAT


def need_ratio(method: str, ratio: float | None, rank: int | None = None) -> float:
    """The ratio, where that alone is how a method is sized.

    Raises:
        UserError: there is none, or a rank was given.
    """
    if rank is not None:
        raise UserError(f"{method} has no rank: give a ratio")
    if ratio is None:
        raise UserError(f"{method} needs a ratio: the share of the bytes in float32 that the table may take")
    return ratio


def too_small(method: str, ratio: float, least: float) -> UserError:
    return UserError(f"{method} needs a ratio of at least {least:.4f} for this vocabulary, not {ratio:g}")
