"""Learning the matrices of recurrent binarisation from vectors alone: no text, no model.

A query is made of a stored vector by noise, and it has to find that vector among the codes of others. With
``s_ij`` the cosine of query i and code j, on the float query (asymmetric) and on its own code (symmetric),
the loss is the cross-entropy of ``softmax(s / τ)`` to the ranking that floats give,
``softmax(cos(q_i, y_j) / τ)``. Codes of recent batches stay as negatives in a queue, of which the nearest
count.

The sign has no slope: its gradient is that of the identity where ``|√M · W y| ≤ 1`` (straight-through).

Source: Gan et al. (2023), embedding-to-embedding training with a queue and hard negatives; their target is
the one vector itself (InfoNCE), ours the floats' whole ranking, of which that vector is the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moembed.losses.binary import SignThrough

STEPS = 200
BATCH = 128
QUEUE = 1024  # codes of earlier batches
NEAREST = 128  # of them and of the batch that count, by query
TEMPERATURE = 0.05
NOISE = 0.7  # length of the noise beside that of the direction, 1
LEARNING_RATE = 3e-4
RIDGE = 0.01  # of the mean square of a coordinate


class Recurrence(nn.Module):
    """Directions ``(B, M)`` to code values ``Σ_t 2⁻ᵗ b_t``, as ``Bebr`` computes them."""

    def __init__(self, binarise_UMM: np.ndarray, restore_UMM: np.ndarray) -> None:
        super().__init__()
        self.binarise_UMM = nn.Parameter(torch.tensor(binarise_UMM))
        self.restore_UMM = nn.Parameter(torch.tensor(restore_UMM))

    def forward(self, direction_BM: Tensor) -> Tensor:
        scale, value_BM = direction_BM.shape[1] ** 0.5, torch.zeros_like(direction_BM)
        for t, binarise_MM in enumerate(self.binarise_UMM):
            left_BM = direction_BM
            if t:
                left_BM = direction_BM - F.normalize(value_BM @ self.restore_UMM[t - 1].T, dim=1)
            bit_BM: Tensor = SignThrough.apply(left_BM @ binarise_MM.T * scale)  # type: ignore[no-untyped-call]
            value_BM = value_BM + bit_BM * 2.0**-t
        return value_BM

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The matrices, for ``Bebr``."""
        return self.binarise_UMM.detach().numpy().copy(), self.restore_UMM.detach().numpy().copy()


def train_binariser(
    direction_NM: np.ndarray, bits: int, *, seed: int = 0, steps: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """W ``(bits, M, M)`` and R ``(bits - 1, M, M)`` for directions of length 1; they depend on the seed."""
    dim = direction_NM.shape[1]
    same_UMM = np.repeat(np.eye(dim, dtype=np.float32)[None], bits, axis=0)
    recurrence = Recurrence(same_UMM, same_UMM[1:])
    optimizer = torch.optim.Adam(recurrence.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    direction = torch.tensor(direction_NM)
    queue = direction[:0], direction[:0]  # directions and code values of earlier batches
    for _ in range(STEPS if steps is None else steps):
        document_BM = direction[torch.randint(len(direction), (BATCH,), generator=generator)]
        query_BM = noisy(document_BM, generator)
        code_BM, value_BM = recurrence(torch.cat([query_BM, document_BM])).chunk(2)
        document_DM, value_DM = torch.cat([document_BM, queue[0]]), torch.cat([value_BM, queue[1]])
        loss = ranking_loss(query_BM, (query_BM, code_BM), document_DM, value_DM)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        queue = document_DM[:QUEUE], value_DM[:QUEUE].detach()
    return recurrence.arrays()


def noisy(direction_BM: Tensor, generator: torch.Generator) -> Tensor:
    """Directions with noise of length ``NOISE`` added: what queries of these documents may look like."""
    noise_BM = torch.randn(direction_BM.shape, generator=generator)
    return F.normalize(direction_BM + NOISE * F.normalize(noise_BM, dim=1), dim=1)


def ranking_loss(query_BM: Tensor, sides: Sequence[Tensor], document_DM: Tensor, value_DM: Tensor) -> Tensor:
    """The loss of each side of queries, see above, among the codes of documents.

    Args:
        query_BM: with ``document_DM`` the ranking that is the target.
        sides: what is compared with the codes ``value_DM``: floats, their codes, or those of another model.
    """
    cosine_BD = query_BM @ document_DM.T
    near = cosine_BD.topk(min(NEAREST, cosine_BD.shape[1]), dim=1).indices
    target = (cosine_BD.gather(1, near) / TEMPERATURE).softmax(dim=1)
    value_MD = F.normalize(value_DM, dim=1).T
    loss = torch.zeros(())
    for side_BM in sides:
        score = (F.normalize(side_BM, dim=1) @ value_MD).gather(1, near) / TEMPERATURE
        loss = loss - (target * score.log_softmax(dim=1)).sum(dim=1).mean() / len(sides)
    return loss


def train_compatible(
    new_NK: np.ndarray,
    value_NM: np.ndarray,
    matrices: tuple[np.ndarray, np.ndarray],
    *,
    seed: int = 0,
    steps: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A ``(M, K)`` and c ``(M)``: ``unit(A x + c)`` is the direction of a new vector among the old.

    It starts as the ridge regression to the directions of the old codes, and learns by the loss above that
    new directions and their new codes rank the old codes as these rank one another. W and R stay as they are.

    Args:
        new_NK: vectors of length 1 of the new model.
        value_NM: old code values of the same texts; the old floats are not needed.
        matrices: W and R of the old codes.
    """
    old = F.normalize(torch.tensor(value_NM), dim=1)
    value, new = torch.tensor(value_NM), F.pad(torch.tensor(new_NK), (0, 1), value=1.0)
    gram = new.T @ new
    gram += RIDGE * gram.trace() / len(gram) * torch.eye(len(gram))
    into_KM = nn.Parameter(torch.linalg.solve(gram, new.T @ old))
    recurrence = Recurrence(*matrices).requires_grad_(False)
    optimizer = torch.optim.Adam([into_KM], lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS if steps is None else steps):
        row_B = torch.randint(len(new), (BATCH,), generator=generator)
        row_D = torch.cat([row_B, torch.randint(len(new), (QUEUE,), generator=generator)])
        direction_BM = F.normalize(new[row_B] @ into_KM, dim=1)
        sides = direction_BM, recurrence(direction_BM)
        loss = ranking_loss(old[row_B], sides, old[row_D], value[row_D])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    into = into_KM.detach().numpy()
    return into[:-1].T.copy(), into[-1].copy()
