"""Vectors of several encoders side by side, and as much of that as fits into fewer coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moembed.search.alignment import Affine
from moembed.types import UserError


def side_by_side(vectors: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """``[√w_1 a, √w_2 b, …]`` of vectors of length 1, with weights that sum up to 1: ``(N, M_1 + M_2 + …)``.

    The result has length 1, and its inner product with another one is the mean of the encoders' cosines,
    ``w_1 cos(a, a') + w_2 cos(b, b') + …``: early fusion, of which late fusion of cosines is the same.

    Raises:
        UserError: weights that are not one for each encoder, or below 0, or all 0; other numbers of rows.
    """
    share = weight_shares(weights, len(vectors))
    if len({len(array_NM) for array_NM in vectors}) > 1:
        raise UserError("the encoders gave different numbers of vectors: they must be of the same texts")
    parts = [np.sqrt(w) * array_NM for w, array_NM in zip(share, vectors, strict=True)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def weight_shares(weights: Sequence[float], count: int) -> list[float]:
    """Weights that sum up to 1."""
    if len(weights) != count:
        raise UserError(f"{len(weights)} weights were given for {count} models")
    if not all(0 <= weight < np.inf for weight in weights) or not any(weights):
        raise UserError(f"weights are at least 0 and not all 0, which {', '.join(map(str, weights))} are not")
    return [weight / sum(weights) for weight in weights]


def reduction(vector_NM: np.ndarray, dim: int) -> tuple[Affine, float]:
    """The ``dim`` directions that hold most of the vectors, and the share of their squared length that they
    hold.

    These are the principal components about the origin, not about the mean: of all linear maps to ``dim``
    coordinates they keep the inner products of the fitted vectors best (Eckart and Young 1936), and with all
    coordinates they keep them as they are.

    Raises:
        UserError: more coordinates than the vectors have, or fewer vectors than coordinates.
    """
    count, width = vector_NM.shape
    if not 1 <= dim <= width:
        raise UserError(f"dim {dim} is not within 1..{width}, the coordinates of all models together")
    if count < dim:
        raise UserError(f"{count} texts cannot tell {dim} directions: give at least as many texts as dim")
    square_MM = vector_NM.T.astype(np.float64) @ vector_NM
    size_M, column_MM = np.linalg.eigh(square_MM)
    order_D = np.argsort(size_M)[::-1][:dim]
    share = float(size_M[order_D].sum() / max(size_M.sum(), np.finfo(float).tiny))
    weight_DM = column_MM[:, order_D].T.astype(np.float32)
    return Affine(weight_DM, np.zeros(dim, dtype=np.float32)), share
