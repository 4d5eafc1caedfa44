"""MUVERA: one vector of fixed length for many token vectors, whose products are near the scores of MaxSim.

Each of R repetitions cuts the space by k random planes into 2^k partitions (SimHash). A query adds up its
tokens in every partition, a document takes their mean; the product of the two is, for every query token, the
product with the mean of the document's tokens beside it, which are the near ones. A partition in which the
document has no token gets the token whose side of the planes differs least. Then, for a search by inner
products, all partitions of all repetitions stand in one vector.

Source: Dhulipala et al., *MUVERA*, arXiv 2405.19504, and the code of google/graph-mining: the Gray-coded
numbers of partitions, the first of equally near tokens, the final count sketch. As in the paper, tokens are
projected by a matrix of signs over ``sqrt(d_proj)``; the Python port has one sign per row there. A factor of
``1 / sqrt(R)`` on both sides, which changes no order, makes a product an estimate of the score itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from moembed.encoding import TokenVectors
from moembed.search.late_search import require_tokens
from moembed.types import UserError

_TOKENS = 16384  # tokens encoded at a time


@dataclass(frozen=True)
class FdeConfig:
    """What decides an encoding; both sides of a search need the same, so an index stores it.

    Attributes:
        token_dim: coordinates M of a token's vector.
        repetitions: R.
        k_sim: planes of a repetition; 0: one partition.
        d_proj: coordinates a token keeps; 0: all of them, without a projection.
        final_dim: coordinates of the whole after the count sketch; 0: all of them, without a sketch.
        seed: of planes, projections and sketch.

    Raises:
        UserError: a number out of its range.
    """

    token_dim: int
    repetitions: int = 20
    k_sim: int = 5
    d_proj: int = 16
    final_dim: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self._require("repetitions", 1024, least=1)
        self._require("k_sim", 12)
        self._require("d_proj", self.token_dim)
        self._require("final_dim", self.full_dim)  # which takes for ever to compute of a wrong k_sim
        self._require("seed", 2**32 - 1)

    def _require(self, name: str, most: int, least: int = 0) -> None:
        if not least <= getattr(self, name) <= most:
            raise UserError(
                f"{name} of a multi-vector index must lie in {least}..{most}, not {getattr(self, name)}"
            )

    @property
    def partitions(self) -> int:
        return 2**self.k_sim

    @property
    def full_dim(self) -> int:
        """Coordinates before the count sketch."""
        return self.repetitions * self.partitions * (self.d_proj or self.token_dim)

    @property
    def dim(self) -> int:
        return self.final_dim or self.full_dim

    def as_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FdeConfig:
        return cls(**value)

    @classmethod
    def parse(cls, text: str, token_dim: int) -> FdeConfig:
        """``repetitions=20,k_sim=5``: numbers by name; what is not named keeps its default.

        Raises:
            UserError: another name, or what is no whole number.
        """
        names = [field.name for field in fields(cls) if field.name != "token_dim"]
        given = {"d_proj": min(cls.d_proj, token_dim)}
        for item in filter(None, text.split(",")):
            name, _, value = item.partition("=")
            if name.strip() not in names or not value.strip().isdecimal():
                raise UserError(
                    f"{item!r} is no setting of a multi-vector index: write name=number with a name of "
                    f"{', '.join(names)}, separated by commas"
                )
            given[name.strip()] = int(value)
        return cls(token_dim, **given)


def gray_bits(number: np.ndarray) -> np.ndarray:
    """The Gray code of a partition's number: neighbours differ in one bit, that is in one plane."""
    return number ^ (number >> 1)


def gray_number(bits: np.ndarray) -> np.ndarray:
    """The number whose Gray code these bits are."""
    number = bits.copy()
    for shift in (1, 2, 4, 8):  # at most 16 bits
        number ^= number >> shift
    return number


class Fde:
    """The encoding of a config. The numbers it draws are the same with every version of NumPy."""

    def __init__(self, config: FdeConfig) -> None:
        self.config = config
        width, repetitions = config.token_dim, config.repetitions
        draw = np.random.RandomState(config.seed)  # its streams are frozen, those of Generators are not
        self.plane_RMK = draw.standard_normal((repetitions, width, config.k_sim)).astype(np.float32)
        self.sign_RMP: np.ndarray | None = None
        if config.d_proj:
            signs = 2 * draw.randint(0, 2, (repetitions, width, config.d_proj)) - 1
            self.sign_RMP = (signs / np.sqrt(config.d_proj)).astype(np.float32)
        if config.final_dim:
            self.place_F = draw.randint(0, config.final_dim, config.full_dim)
            self.sketch_F = (2 * draw.randint(0, 2, config.full_dim) - 1).astype(np.float32)

    def queries(self, tokens: TokenVectors) -> np.ndarray:
        """``(N, dim)`` fp32; of a query without a token: zeros.

        Raises:
            UserError: tokens of another width.
        """
        return self._encoded(tokens, is_document=False)

    def documents(self, tokens: TokenVectors) -> np.ndarray:
        """``(N, dim)`` fp32.

        Raises:
            UserError: a document without a token; tokens of another width.
        """
        require_tokens(tokens)
        return self._encoded(tokens, is_document=True)

    def _encoded(self, tokens: TokenVectors, is_document: bool) -> np.ndarray:
        if tokens.vector_TM.shape[1] != self.config.token_dim:
            raise UserError(
                f"tokens have {tokens.vector_TM.shape[1]} coordinates, the encoding takes "
                f"{self.config.token_dim}"
            )
        found = np.empty((len(tokens), self.config.dim), np.float32)
        for some, vector_TM, length_N in _blocks(tokens):
            found[some] = self._sketched(self._partitioned(vector_TM, length_N, is_document))
        return found

    def _partitioned(self, vector_TM: np.ndarray, length_N: np.ndarray, is_document: bool) -> np.ndarray:
        config = self.config
        texts, partitions = len(length_N), config.partitions
        text_T = np.repeat(np.arange(texts), length_N)
        start_N = np.cumsum(length_N) - length_N
        width = config.d_proj or config.token_dim
        whole = np.zeros((texts, config.repetitions, partitions, width), np.float32)
        for number, plane_MK in enumerate(self.plane_RMK):
            side_TK = vector_TM @ plane_MK > 0
            bits_T = side_TK @ (1 << np.arange(config.k_sim)[::-1])
            point_TP = vector_TM if self.sign_RMP is None else vector_TM @ self.sign_RMP[number]
            key_T = text_T * partitions + gray_number(bits_T)
            block = np.zeros((texts * partitions, width), np.float32)
            order_T = np.argsort(key_T, kind="stable")
            filled, first = np.unique(key_T[order_T], return_index=True)
            if len(filled):
                block[filled] = np.add.reduceat(point_TP[order_T], first, axis=0)
            if is_document:
                count = np.bincount(key_T, minlength=len(block))
                block /= np.maximum(count, 1)[:, None]
                empty = np.flatnonzero(count == 0)
                nearest_NB = self._nearest(bits_T, length_N, start_N)
                block[empty] = point_TP[nearest_NB.reshape(-1)[empty]]
            whole[:, number] = block.reshape(texts, partitions, width)
        return whole.reshape(texts, -1) / np.float32(np.sqrt(config.repetitions))

    def _nearest(self, bits_T: np.ndarray, length_N: np.ndarray, start_N: np.ndarray) -> np.ndarray:
        """For every document and partition, the first token on the other side of the fewest planes."""
        bits_B = gray_bits(np.arange(self.config.partitions))
        ones_B = np.array([bin(number).count("1") for number in range(self.config.partitions)])
        apart_TB = ones_B[bits_T[:, None] ^ bits_B]
        token_T1 = np.arange(len(bits_T))[:, None]
        least_NB = np.minimum.reduceat(apart_TB * len(bits_T) + token_T1, start_N, axis=0)
        return least_NB % len(bits_T)

    @cached_property
    def _by_place(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coordinates in the order of their places in the sketch; the places there are; where each begins."""
        order_F = np.argsort(self.place_F, kind="stable")
        return order_F, *np.unique(self.place_F[order_F], return_index=True)

    def _sketched(self, whole_NF: np.ndarray) -> np.ndarray:
        """Every coordinate added to one place of the result, with a sign."""
        if not self.config.final_dim:
            return whole_NF
        order_F, place, first = self._by_place
        found = np.zeros((len(whole_NF), self.config.final_dim), np.float32)
        found[:, place] = np.add.reduceat((whole_NF * self.sketch_F)[:, order_F], first, axis=1)
        return found


def _blocks(tokens: TokenVectors) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """The texts a few at a time: which they are, their vectors, and how many each has."""
    end_N = np.cumsum(tokens.length_N)
    first = start = 0
    while first < len(tokens):
        last = max(first + 1, int(np.searchsorted(end_N, start + _TOKENS, side="right")))
        end = int(end_N[last - 1])
        yield slice(first, last), tokens.vector_TM[start:end], tokens.length_N[first:last]
        first, start = last, end
