"""What a stored vector shrinks to, and what a search among shrunken vectors sees.

A codec is fitted to documents, turns vectors into codes and codes back into vectors. Documents are stored as
codes; a query is never stored, so it stays float32 unless the search itself works on codes
(``…-symmetric``). ``as_searched`` gives both sides as a search sees them: one encode of the texts draws
the whole curve of score against bytes. What a codec learns from documents is its calibration (``state``):
codes say nothing without it, and it never comes from queries.

Codes of ``int8`` and ``binary`` are those of `sentence_transformers.quantize_embeddings` (``int8`` and
``ubinary``). Sources: Jégou et al., *Product quantization* (2011), on asymmetric distances; Kusupati et al.,
*Matryoshka Representation Learning* (2022), on prefixes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from moembed.encoding import truncate
from moembed.search.binariser import Bebr, BebrSymmetric, unit
from moembed.search.product_codes import ProductCodes, RotatedProductCodes
from moembed.types import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

_LEVELS = 255  # steps between the smallest and the largest value of a dimension
_SIGNED = 128  # code of the smallest value, below zero


class Codec(Protocol):
    """Vectors of one width <-> codes, of ``bytes_per_vector`` each; ``fit`` makes one for documents.

    ``decode`` and ``query`` give both sides of a search, whose cosines are the scores. Some rotate both.
    """

    @classmethod
    def fit(cls, document_NM: np.ndarray, *args: Any, **kwargs: Any) -> Codec: ...  # of some also bits, seed

    def encode(self, vector_NM: np.ndarray) -> np.ndarray: ...

    def decode(self, code_NB: np.ndarray) -> np.ndarray: ...

    def query(self, query_QM: np.ndarray) -> np.ndarray: ...

    @property
    def bytes_per_vector(self) -> int: ...

    def state(self) -> dict[str, np.ndarray]: ...

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Codec: ...


class _FloatQueries:
    """Queries stay as they are."""

    __slots__ = ()

    def query(self, query_QM: np.ndarray) -> np.ndarray:
        return query_QM


class _Width(_FloatQueries):
    """A codec that learns nothing but the width."""

    __slots__ = ()
    dim: int

    def state(self) -> dict[str, np.ndarray]:
        return {"dim": np.array([self.dim])}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self:
        return cls(int(state["dim"][0]))  # type: ignore[call-arg]


@dataclass(frozen=True, slots=True)
class Float32(_Width):
    """Every coordinate as it is."""

    dtype: ClassVar[type[np.floating]] = np.float32
    dim: int

    @classmethod
    def fit(cls, document_NM: np.ndarray) -> Self:
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


def keeps_zeros(codec: Codec) -> bool:
    """Whether a vector of zeros stays one: of other codecs it gets a direction, near to some queries."""
    return isinstance(codec, Float32)


@dataclass(frozen=True, slots=True)
class Int8(_FloatQueries):
    """Each dimension in 256 steps from its smallest value among the documents to its largest.

    code = ⌊(x - low) / step⌋ - 128 with step = (high - low) / 255, cut off outside; decoded to the middle of
    the step, half a step off at most within the range.
    """

    low_M: np.ndarray
    step_M: np.ndarray

    @classmethod
    def fit(cls, document_NM: np.ndarray) -> Self:
        if not len(document_NM):
            raise UserError("int8 takes its ranges from documents, and there are none")
        low_M, high_M = (side(document_NM, axis=0).astype(np.float32) for side in (np.min, np.max))
        return cls(low_M, (high_M - low_M) / _LEVELS)

    def encode(self, vector_NM: np.ndarray) -> np.ndarray:
        step_M = np.where(self.step_M == 0, 1, self.step_M)  # of a dimension that never changes
        level_NM = np.clip(np.floor((vector_NM - self.low_M) / step_M), 0, _LEVELS)
        return (level_NM - _SIGNED).astype(np.int8)

    def decode(self, code_NB: np.ndarray) -> np.ndarray:
        # in place: fresh memory for every term of the sum costs more than the sum
        vector_NM = np.multiply(code_NB, self.step_M, dtype=np.float32)
        vector_NM += self.low_M + np.float32(_SIGNED + 0.5) * self.step_M
        return vector_NM

    @property
    def bytes_per_vector(self) -> int:
        return len(self.low_M)

    def state(self) -> dict[str, np.ndarray]:
        return {"low_M": self.low_M, "step_M": self.step_M}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self:
        return cls(state["low_M"], state["step_M"])


@dataclass(frozen=True, slots=True)
class Binary(_Width):
    """The sign of every coordinate in a bit, eight to a byte, the first in the highest bit; decoded to ± 1.

    The dot product of a float query with ± 1 is the asymmetric search: the query keeps its magnitudes.
    """

    dim: int

    @classmethod
    def fit(cls, document_NM: np.ndarray) -> Self:
        return cls(document_NM.shape[1])

    def encode(self, vector_NM: np.ndarray) -> np.ndarray:
        return np.packbits(vector_NM > 0, axis=-1)

    def decode(self, code_NB: np.ndarray) -> np.ndarray:
        return _signs(code_NB, self.dim)

    @property
    def bytes_per_vector(self) -> int:
        return -(-self.dim // 8)


class BinarySymmetric(Binary):
    """Queries are bits too: the order of cosines is the order of Hamming distances."""

    __slots__ = ()

    def query(self, query_QM: np.ndarray) -> np.ndarray:
        return self.decode(self.encode(query_QM))


@dataclass(frozen=True, slots=True)
class Projected:
    """The signs of ``bits`` · dim random projections of ``x - μ``, μ the mean of the documents.

    Rotations, one for every bit per dimension, make the projections. Decoded to ± 1; the query is projected
    and keeps its magnitudes.

    Source: Charikar, *Similarity estimation techniques from rounding algorithms* (2002).
    """

    mean_M: np.ndarray
    projection_PM: np.ndarray

    @classmethod
    def fit(cls, document_NM: np.ndarray, bits: int = 1, seed: int = 0) -> Self:
        if not len(document_NM):
            raise UserError("lsh takes its mean from documents, and there are none")
        dim = document_NM.shape[1]
        mean_M = unit(document_NM).mean(axis=0, dtype=np.float64).astype(np.float32)
        return cls(mean_M, np.concatenate([rotation(dim, seed + t) for t in range(bits)]))

    def encode(self, vector_NM: np.ndarray) -> np.ndarray:
        return np.packbits(self.query(vector_NM) > 0, axis=-1)

    def decode(self, code_NB: np.ndarray) -> np.ndarray:
        return _signs(code_NB, len(self.projection_PM))

    def query(self, query_QM: np.ndarray) -> np.ndarray:
        projected: np.ndarray = (unit(query_QM) - self.mean_M) @ self.projection_PM.T
        return projected

    @property
    def bytes_per_vector(self) -> int:
        return -(-len(self.projection_PM) // 8)

    def state(self) -> dict[str, np.ndarray]:
        return {"mean_M": self.mean_M, "projection_PM": self.projection_PM}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self:
        return cls(state["mean_M"], state["projection_PM"])


def _signs(code_NB: np.ndarray, count: int) -> np.ndarray:
    """± 1 for every bit, float32."""
    sign_NP = np.unpackbits(code_NB, axis=-1, count=count).astype(np.float32)
    sign_NP *= 2
    sign_NP -= 1
    return sign_NP


def rotation(dim: int, seed: int) -> np.ndarray:
    """A random orthonormal matrix, float32 ``(dim, dim)``: spreads every direction over all dimensions."""
    random_MM = np.random.default_rng(seed).standard_normal((dim, dim))
    q_MM, r_MM = np.linalg.qr(random_MM)
    return (q_MM * np.sign(np.diag(r_MM))).astype(np.float32)


CODECS: Mapping[str, type[Codec]] = {
    "float32": Float32,
    "float16": Float16,
    "int8": Int8,
    "binary": Binary,
    "binary-symmetric": BinarySymmetric,
}
# those that are asked for with bits per dimension, as bebr:2
CODECS_OF_BITS: Mapping[str, type[Codec]] = {
    "lsh": Projected,
    "pq": ProductCodes,
    "opq": RotatedProductCodes,
    "bebr": Bebr,
    "bebr-symmetric": BebrSymmetric,
}
_KNOWN = f"{', '.join(CODECS)} and, with bits per dimension as in bebr:2, {', '.join(CODECS_OF_BITS)}"


def codec_kind(name: str) -> tuple[type[Codec], int | None]:
    """The kind that a name such as ``int8`` or ``bebr:2`` means, and its bits per dimension, if it says them.

    Raises:
        UserError: there is none of that name, or the bits are no whole number of 1 to 8.
    """
    kind, _, bits = name.partition(":")
    if name in CODECS:
        return CODECS[name], None
    if kind in CODECS and bits:
        raise UserError(f"the codec {kind!r} has its own number of bits: leave :{bits} out")
    if kind not in CODECS_OF_BITS:
        raise UserError(f"unknown codec {name!r}; known are {_KNOWN}")
    if not (bits.isdecimal() and 1 <= int(bits) <= 8):
        raise UserError(f"say with how many bits per dimension, 1 to 8, as in {kind}:2, not {name!r}")
    return CODECS_OF_BITS[kind], int(bits)


def fit_codec(name: str, document_NM: np.ndarray, seed: int = 0) -> Codec:
    """The codec of that name for documents; learned ones depend on documents and ``seed`` alone.

    Raises:
        UserError: an unknown codec, no documents or too few, a library that is missing.
    """
    kind, bits = codec_kind(name)
    return kind.fit(document_NM) if bits is None else kind.fit(document_NM, bits=bits, seed=seed)


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
        UserError: as ``fit_codec``; ``dim`` beyond the vectors.
    """
    query_QM, document_NM = truncate(query_QM, dim), truncate(document_NM, dim)
    fitted = fit_codec(codec, document_NM)
    document_NM = fitted.decode(fitted.encode(document_NM))
    return Searched(fitted.query(query_QM), document_NM, fitted.bytes_per_vector)
