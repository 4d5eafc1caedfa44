"""What sets groups of vectors apart (languages, modalities), taken out of stored vectors afterwards.

Texts of one language lie together, whatever they say: their mean differs from that of other languages by a
gap, and the nearest neighbour of a text is one of its own language. Two ways to close the gap, fitted on
training vectors alone, with the share ``strength`` of it that goes:

- ``shift``: every group moves by its own mean, ``x - strength · (mean_g - m)``, where m is the mean of the
  means. Of two groups these are the two half steps ``± strength · gap / 2``. The group of a vector must be
  known.
- ``project``: the directions V in which the means differ are taken out of every vector,
  ``x - strength · V Vᵀ (x - m)``. Nothing has to be known of a vector, and what differs within a group in
  these directions goes too.

Of either, the means of the groups are ``m + (1 - strength) · (mean_g - m)`` afterwards, so with strength 1
they are equal. The vectors are of length 1 before; whoever uses them makes them so again.

Sources: *Multimodal Deep Learning for Low-Resource Settings* shifts two groups, which follows other people's
accounts of it; means of languages are subtracted in Libovický, Rosa and Fraser, *On the
Language Neutrality of Pre-trained Multilingual Representations* (2020); directions are taken out of all
vectors in Yang et al., *A Simple and Effective Method To Eliminate the Self Language Bias in Multilingual
Representations* (2021), which finds them in the vectors of each language, and in Xie et al., *Discovering
Low-rank Subspaces for Language-agnostic Multilingual Representations* (2022), which finds them in the means,
as here.

Shapes: N vectors, L groups, M coordinates, R directions, D coordinates of what is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moembed.types import UserError

_NOTHING = 1e-6  # of the largest singular value: what rounding leaves of a direction that is none


@dataclass(frozen=True, slots=True)
class GroupMeans:
    """The mean vector of every group. ``mean_LM`` is float64, in the order of ``names``."""

    names: tuple[str, ...]
    mean_LM: np.ndarray

    @property
    def center_M(self) -> np.ndarray:
        """The mean of the means: every group counts alike, whatever the number of its vectors."""
        center_M: np.ndarray = self.mean_LM.mean(axis=0)
        return center_M

    @property
    def gap(self) -> float:
        """The mean distance of two groups' means; cosines of vectors lie between -1 and 1."""
        count = len(self.names)
        # one group after the other: all differences at once take much memory where there are many
        rows = (np.linalg.norm(self.mean_LM[i + 1 :] - self.mean_LM[i], axis=1).sum() for i in range(count))
        return float(sum(rows) / (count * (count - 1) / 2))


@dataclass(frozen=True, slots=True)
class Affine:
    """``W x + b``: W is ``(D, M)``, b ``(D,)``, both float32."""

    weight_DM: np.ndarray
    bias_D: np.ndarray

    def __call__(self, vector_NM: np.ndarray) -> np.ndarray:
        result_ND: np.ndarray = vector_NM @ self.weight_DM.T + self.bias_D
        return result_ND


def group_means(vector_NM: np.ndarray, group_N: Sequence[str]) -> GroupMeans:
    """The mean of every group, groups in alphabetical order.

    Raises:
        UserError: fewer than two groups, or vectors that are not one for each name.
    """
    if len(vector_NM) != len(group_N):
        raise UserError(f"{len(vector_NM)} vectors and {len(group_N)} names of groups do not fit together")
    names, number_N = np.unique(np.asarray(group_N, dtype=str), return_inverse=True)
    if len(names) < 2:
        raise UserError(
            f"all vectors are of the group {', '.join(names) or 'of nothing'}: a gap lies between two groups"
        )
    total_LM = np.zeros((len(names), vector_NM.shape[1]))
    np.add.at(total_LM, number_N, vector_NM.astype(np.float64))
    return GroupMeans(tuple(map(str, names)), total_LM / np.bincount(number_N)[:, None])


def directions(means: GroupMeans) -> np.ndarray:
    """``(R, M)``: orthonormal rows that span all differences between means, the largest first; R < L."""
    _, size_R, row_RM = np.linalg.svd(means.mean_LM - means.center_M, full_matrices=False)
    kept: np.ndarray = row_RM[size_R > _NOTHING * max(size_R.max(), np.finfo(float).tiny)]
    return kept


def projection(means: GroupMeans, strength: float) -> Affine:
    """``x - strength · V Vᵀ (x - m)`` as one linear layer.

    Raises:
        UserError: a strength that is no share, or means that are all the same.
    """
    require_share(strength)
    row_RM = directions(means)
    if not len(row_RM):
        raise UserError("the groups have one and the same mean: there is no gap to close")
    out_MM = strength * row_RM.T @ row_RM
    return Affine(
        (np.eye(out_MM.shape[0]) - out_MM).astype(np.float32), (out_MM @ means.center_M).astype(np.float32)
    )


def shift(
    vector_NM: np.ndarray, group_N: Sequence[str | None], means: GroupMeans, strength: float
) -> np.ndarray:
    """``x - strength · (mean_g - m)``; vectors of a group without a mean stay where they are.

    Raises:
        UserError: a strength that is no share.
    """
    require_share(strength)
    step_LM = strength * (means.mean_LM - means.center_M)
    place: Mapping[str | None, int] = {name: number for number, name in enumerate(means.names)}
    step_LM = np.concatenate([step_LM, np.zeros((1, step_LM.shape[1]))])
    number_N = np.array([place.get(group, len(means.names)) for group in group_N], dtype=np.int64)
    return (vector_NM - step_LM[number_N]).astype(np.float32)


def require_share(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise UserError(f"strength {strength} is not a share of the gap, between 0 and 1")
