"""Recurrent binarisation: a vector as 1, 2, 4 … bits per dimension, each bit of what the others left over.

With ``unit(x) = x / |x|`` and ``y = unit(x - μ)``, the code of a vector x of length 1 is ``v = Σ_t 2⁻ᵗ b_t``
of

    b_0 = sign(W_0 y)        b_t = sign(W_t (y - unit(R_t v_{t-1})))        v_t = v_{t-1} + 2⁻ᵗ b_t

so every dimension holds one of ``2^bits`` values with equal steps. ``W_t`` and ``R_t`` are ``(M, M)``
matrices that ``binariser_training`` learns from stored vectors alone; before training all of them are the
identity: the code of one bit is the signs, that of more a scalar quantiser.

Source: Gan et al., *Binary Embedding-based Retrieval at Tencent* (2023), section on recurrent binarisation;
the authors' code has this recurrence, with matrices or small MLPs as W and R. The mean and the asymmetric
distance are ours: the paper compares codes with codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moembed.types import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_BITS = 8
_ROWS = 4096  # that are coded at a time
TRAINING_ROWS = 100_000  # more vectors than this teach nothing new to a few matrices
# A mean of the documents that is shorter counts as 0. All vectors of some models (E5) lie about one
# direction, and their signs say little; of others (MiniLM: 0.2 to 0.4), vectors as they are make better codes
# than what is left without the mean: records/codecs.md.
_SHORT_MEAN = 0.5


@dataclass(frozen=True, slots=True)
class Bebr:
    """Codes of recurrent binarisation; a float query is compared with codes (asymmetric).

    The code says the direction ``û = v / |v|`` of ``x - μ``, and as x has length 1, how far x lies from μ:
    ``ρ = √((μ·û)² + 1 - |μ|²) - μ·û``. So it is decoded to ``μ + ρ û``, of length 1 again. No norm is stored.

    Attributes:
        mean_M: μ, the mean of the documents, or 0 where that is short.
        binarise_UMM: W_t of every bit.
        restore_UMM: R_t of every bit but the first.
    """

    mean_M: np.ndarray
    binarise_UMM: np.ndarray
    restore_UMM: np.ndarray

    @classmethod
    def fit(cls, document_NM: np.ndarray, bits: int = 2, seed: int = 0, steps: int | None = None) -> Self:
        """Learn a code of ``bits`` per dimension; ``steps`` 0 is the scalar quantiser.

        Raises:
            UserError: no documents, bits outside 1..8, PyTorch is missing.
        """
        from moembed.search.binariser_training import train_binariser

        if not 1 <= bits <= MOST_BITS:
            raise UserError(f"bebr takes 1 to {MOST_BITS} bits per dimension, not {bits}")
        plain = cls.untrained(document_NM, bits)
        rng = np.random.default_rng(seed)
        some = rng.permutation(len(document_NM))[:TRAINING_ROWS]
        direction_NM = plain.directions(document_NM[np.sort(some)])
        learned = train_binariser(direction_NM, bits, seed=seed, steps=steps)
        return cls(plain.mean_M, *learned)

    @classmethod
    def untrained(cls, document_NM: np.ndarray, bits: int) -> Self:
        """The scalar quantiser that training starts from."""
        if not len(document_NM):
            raise UserError("bebr learns from documents, and there are none")
        dim = document_NM.shape[1]
        mean_M = unit(document_NM).mean(axis=0, dtype=np.float64).astype(np.float32)
        mean_M *= np.linalg.norm(mean_M) >= _SHORT_MEAN
        same_UMM = np.repeat(np.eye(dim, dtype=np.float32)[None], bits, axis=0)
        return cls(mean_M, same_UMM, same_UMM[1:])

    @property
    def bits(self) -> int:
        return len(self.binarise_UMM)

    @property
    def bytes_per_vector(self) -> int:
        return self.bits * -(-len(self.mean_M) // 8)

    def directions(self, vector_NM: np.ndarray) -> np.ndarray:
        """``unit(x - μ)``."""
        return unit(unit(vector_NM) - self.mean_M)

    def encode(self, vector_NM: np.ndarray) -> np.ndarray:
        blocks = [
            self.pack(self.directions(vector_NM[start : start + _ROWS]))
            for start in range(0, len(vector_NM), _ROWS)
        ]
        return np.concatenate(blocks) if blocks else np.zeros((0, self.bytes_per_vector), np.uint8)

    def pack(self, direction_NM: np.ndarray) -> np.ndarray:
        """The bits of directions, one plane after the other, as ``Binary`` packs them."""
        value_NM, planes = np.zeros_like(direction_NM), []
        for t in range(self.bits):
            left_NM = direction_NM
            if t:
                left_NM = direction_NM - unit(value_NM @ self.restore_UMM[t - 1].T)
            bit_NM = left_NM @ self.binarise_UMM[t].T > 0
            value_NM = value_NM + np.where(bit_NM, 1, -1).astype(np.float32) * np.float32(2.0**-t)
            planes.append(np.packbits(bit_NM, axis=-1))
        return np.concatenate(planes, axis=1)

    def values(self, code_NB: np.ndarray) -> np.ndarray:
        """``Σ_t 2⁻ᵗ b_t``, float32 ``(N, M)``."""
        dim, value_NM = len(self.mean_M), np.zeros((len(code_NB), len(self.mean_M)), np.float32)
        for t, plane_NB in enumerate(np.split(code_NB, self.bits, axis=1)):
            bit_NM = np.unpackbits(plane_NB, axis=-1, count=dim)
            value_NM += (bit_NM.astype(np.float32) * 2 - 1) * np.float32(2.0**-t)
        return value_NM

    def place(self, direction_NM: np.ndarray) -> np.ndarray:
        """The vector of length 1 that lies in this direction from the mean."""
        along_N = direction_NM @ self.mean_M
        distance_N = np.sqrt(np.maximum(along_N**2 + 1 - self.mean_M @ self.mean_M, 0)) - along_N
        return self.mean_M + distance_N[:, None] * direction_NM

    def decode(self, code_NB: np.ndarray) -> np.ndarray:
        return self.place(unit(self.values(code_NB)))

    def query(self, query_QM: np.ndarray) -> np.ndarray:
        return query_QM

    def state(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in ("mean_M", "binarise_UMM", "restore_UMM")}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self:
        return cls(state["mean_M"], state["binarise_UMM"], state["restore_UMM"])


class BebrSymmetric(Bebr):
    """Queries are codes too: cosines of code values, which are whole numbers in units of ``2^(1-bits)``."""

    __slots__ = ()

    def decode(self, code_NB: np.ndarray) -> np.ndarray:
        return self.values(code_NB)

    def query(self, query_QM: np.ndarray) -> np.ndarray:
        return self.decode(self.encode(query_QM))


def unit(vector_NM: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; a row of zeros stays as it is."""
    vector_NM = np.asarray(vector_NM, np.float32)
    norm_N1 = np.linalg.norm(vector_NM, axis=1, keepdims=True)
    return vector_NM / np.where(norm_N1 > 0, norm_N1, 1)
