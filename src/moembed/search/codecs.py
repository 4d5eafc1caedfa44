"""What a stored vector shrinks to, and what a search among shrunken vectors sees.

A codec is fitted to documents, turns vectors into codes and codes back into vectors. Documents are stored as
codes; a query is never stored, so it stays float32 unless the search itself works on codes
(``binary-symmetric``). ``as_searched`` gives both sides as a search sees them: one encode of the texts draws
the whole curve of score against bytes.

Codes of ``int8`` and ``binary`` are those of `sentence_transformers.quantize_embeddings` (``int8`` and
``ubinary``). Sources: Jégou et al., *Product quantization* (2011), on asymmetric distances; Kusupati et al.,
*Matryoshka Representation Learning* (2022), on prefixes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from moembed.encoding import truncate
from moembed.types import UserError

_LEVELS = 255  # steps between the smallest and the largest value of a dimension
_SIGNED = 128  # code of the smallest value, below zero


class Codec(Protocol):
    """Vectors of one width <-> codes, of ``bytes_per_vector`` each; ``fit`` makes one for documents."""

    symmetric: ClassVar[bool]  # whether queries are searched with as codes, too

    @classmethod
    def fit(cls, document_NM: np.ndarray) -> Codec: ...

    def encode(self, vector_NM: np.ndarray) -> np.ndarray: ...

    def decode(self, code_NB: np.ndarray) -> np.ndarray: ...

    @property
    def bytes_per_vector(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Float32:
    """Every coordinate as it is."""

    symmetric: ClassVar[bool] = False
    dtype: ClassVar[type[np.floating]] = np.float32
    dim: int

    @classmethod
    def fit(cls, document_NM: np.ndarray) -> Float32:
        return cls(document_NM.shape[1])

    def encode(self, vector_NM: np.ndarray) -> np.ndarray:
        return vector_NM.astype(self.dtype)

    def decode(self, code_NB: np.ndarray) -> np.ndarray:
        return code_NB.astype(np.float32)

    @property
    def bytes_per_vector(self) -> int:
        return self.dim * np.dtype(self.dtype).itemsize


class Float16(Float32):
    """Every coordinate rounded to half precision: for ``|x| ≤ 1`` by at most ``2⁻¹¹ · |x| + 2⁻²⁵``."""

    dtype = np.float16


@dataclass(frozen=True, slots=True)
class Int8:
    """Each dimension in 256 steps from its smallest value among the documents to its largest.

    code = ⌊(x - low) / step⌋ - 128 with step = (high - low) / 255, cut off outside; decoded to the middle of
    the step, half a step off at most within the range.
    """

    symmetric: ClassVar[bool] = False
    low_M: np.ndarray
    step_M: np.ndarray

    @classmethod
    def fit(cls, document_NM: np.ndarray) -> Int8:
        if not len(document_NM):
            raise UserError("int8 takes its ranges from documents, and there are none")
        low_M, high_M = (side(document_NM, axis=0).astype(np.float32) for side in (np.min, np.max))
        return cls(low_M, (high_M - low_M) / _LEVELS)

    def encode(self, vector_NM: np.ndarray) -> np.ndarray:
        step_M = np.where(self.step_M == 0, 1, self.step_M)  # of a dimension that never changes
        level_NM = np.clip(np.floor((vector_NM - self.low_M) / step_M), 0, _LEVELS)
        return (level_NM - _SIGNED).astype(np.int8)

    def decode(self, code_NB: np.ndarray) -> np.ndarray:
        return (code_NB.astype(np.float32) + (_SIGNED + 0.5)) * self.step_M + self.low_M

    @property
    def bytes_per_vector(self) -> int:
        return len(self.low_M)


@dataclass(frozen=True, slots=True)
class Binary:
    """The sign of every coordinate in a bit, eight to a byte, the first in the highest bit; decoded to ± 1.

    The dot product of a float query with ± 1 is the asymmetric search: the query keeps its magnitudes.
    """

    symmetric: ClassVar[bool] = False
    dim: int

    @classmethod
    def fit(cls, document_NM: np.ndarray) -> Binary:
        return cls(document_NM.shape[1])

    def encode(self, vector_NM: np.ndarray) -> np.ndarray:
        return np.packbits(vector_NM > 0, axis=-1)

    def decode(self, code_NB: np.ndarray) -> np.ndarray:
        return np.unpackbits(code_NB, axis=-1, count=self.dim).astype(np.float32) * 2 - 1

    @property
    def bytes_per_vector(self) -> int:
        return -(-self.dim // 8)


class BinarySymmetric(Binary):
    """Queries are bits too: the order of cosines is the order of Hamming distances."""

    symmetric = True


CODECS: Mapping[str, type[Codec]] = {
    "float32": Float32,
    "float16": Float16,
    "int8": Int8,
    "binary": Binary,
    "binary-symmetric": BinarySymmetric,
}


@dataclass(frozen=True, slots=True)
class Searched:
    """Both sides of a search, float32, for any search by cosine; and the bytes a stored document takes."""

    query_QM: np.ndarray
    document_NM: np.ndarray
    bytes_per_vector: int


def as_searched(
    query_QM: np.ndarray, document_NM: np.ndarray, codec: str = "float32", dim: int | None = None
) -> Searched:
    """What a search with this codec and only the first ``dim`` coordinates sees.

    Raises:
        UserError: an unknown codec, ``dim`` beyond the vectors, no documents to take ranges from.
    """
    if codec not in CODECS:
        raise UserError(f"unknown codec {codec!r}; known are {', '.join(CODECS)}")
    query_QM, document_NM = truncate(query_QM, dim), truncate(document_NM, dim)
    fitted = CODECS[codec].fit(document_NM)
    if fitted.symmetric:
        query_QM = fitted.decode(fitted.encode(query_QM))
    return Searched(query_QM, fitted.decode(fitted.encode(document_NM)), fitted.bytes_per_vector)
