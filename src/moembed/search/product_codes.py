"""Product quantisation by FAISS: a vector is cut into short pieces, each the number of its nearest centroid.

A piece of ``8 / bits`` dimensions takes one byte: one of 256 centroids. OPQ rotates all vectors first, so
that pieces are alike and independent. FAISS learns centroids and rotation from the documents; to decode is to
look up.

Sources: Jégou et al., *Product quantization for nearest neighbor search* (2011); Ge et al., *Optimized
product quantization* (2013).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from moembed.types import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

CENTROIDS = 256
TRAINING_ROWS = 65_536
_ROTATIONS = 20  # rounds in which OPQ finds its rotation


@dataclass(frozen=True, slots=True)
class ProductCodes:
    """Numbers of centroids; a float query is compared with the centroids.

    Attributes:
        centroid_PCD: of every piece, ``(pieces, 256, dimensions of a piece)``.
        rotation_MM: of OPQ; without it the identity is not stored, but ``(0, 0)``.
    """

    rotates: ClassVar[bool] = False
    centroid_PCD: np.ndarray
    rotation_MM: np.ndarray

    @classmethod
    def fit(cls, document_NM: np.ndarray, bits: int = 2, seed: int = 0) -> Self:
        """
        Raises:
            UserError: FAISS is missing, fewer than 256 documents, a width that the pieces do not divide.
        """
        faiss = _faiss()
        dim = document_NM.shape[1]
        if bits not in (1, 2, 4, 8):
            raise UserError(f"product quantisation takes 1, 2, 4 or 8 bits per dimension, not {bits}")
        if dim % (8 // bits):
            raise UserError(
                f"pieces of {8 // bits} dimensions do not divide {dim}: choose more bits per dimension or "
                "another dim"
            )
        if len(document_NM) < CENTROIDS:
            raise UserError(
                f"product quantisation learns {CENTROIDS} centroids from as many vectors at least, and there "
                f"are {len(document_NM)}"
            )
        some = np.sort(np.random.default_rng(seed).permutation(len(document_NM))[:TRAINING_ROWS])
        vector_NM = np.ascontiguousarray(document_NM[some], np.float32)
        pieces, rotation_MM = dim * bits // 8, np.zeros((0, 0), np.float32)
        if cls.rotates:
            opq = faiss.OPQMatrix(dim, pieces)
            opq.niter = _ROTATIONS
            opq.pq = _quantiser(faiss, dim, pieces, seed)
            opq.train(vector_NM)
            rotation_MM = faiss.vector_to_array(opq.A).reshape(dim, dim).copy()
            vector_NM = np.ascontiguousarray(vector_NM @ rotation_MM.T)
        quantiser = _quantiser(faiss, dim, pieces, seed)
        quantiser.train(vector_NM)
        centroids = faiss.vector_to_array(quantiser.centroids)
        return cls(centroids.reshape(pieces, CENTROIDS, dim // pieces).copy(), rotation_MM)

    @property
    def bytes_per_vector(self) -> int:
        return len(self.centroid_PCD)

    def encode(self, vector_NM: np.ndarray) -> np.ndarray:
        """
        Raises:
            UserError: FAISS is missing.
        """
        pieces, _, width = self.centroid_PCD.shape
        if not len(vector_NM):
            return np.zeros((0, pieces), np.uint8)
        faiss = _faiss()
        quantiser = faiss.ProductQuantizer(pieces * width, pieces, 8)
        faiss.copy_array_to_vector(self.centroid_PCD.ravel(), quantiser.centroids)
        code_NB: np.ndarray = quantiser.compute_codes(np.ascontiguousarray(self.query(vector_NM), np.float32))
        return code_NB

    def decode(self, code_NB: np.ndarray) -> np.ndarray:
        """Documents as ``query`` has queries: rotated, if the codec rotates."""
        pieces, _, width = self.centroid_PCD.shape
        return self.centroid_PCD[np.arange(pieces), code_NB].reshape(len(code_NB), pieces * width)

    def query(self, query_QM: np.ndarray) -> np.ndarray:
        return query_QM @ self.rotation_MM.T if self.rotation_MM.size else query_QM

    def state(self) -> dict[str, np.ndarray]:
        return {"centroid_PCD": self.centroid_PCD, "rotation_MM": self.rotation_MM}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self:
        return cls(state["centroid_PCD"], state["rotation_MM"])


class RotatedProductCodes(ProductCodes):
    """OPQ."""

    __slots__ = ()
    rotates = True


def _quantiser(faiss: Any, dim: int, pieces: int, seed: int) -> Any:
    quantiser = faiss.ProductQuantizer(dim, pieces, 8)
    quantiser.cp.seed = seed + 1
    quantiser.cp.min_points_per_centroid = 1  # fewer are allowed; FAISS would print a warning of its own
    return quantiser


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError("product quantisation needs FAISS: pip install 'moembed[mine]'") from None
    return faiss
