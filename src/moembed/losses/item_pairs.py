"""Item pairs of another space: the cosines between items, behind a projection, go to the scores it gives.

The other space may come from clicks, from ids or from another model, of any width: of it only the scores of
pairs count. Source: SAIL-Embedding, arXiv 2510.12709, whose abstract says that it distils knowledge from
sequence-to-item and ID-to-item embeddings; no text of it with a formula was found, so this form is ours: the
squared distance of two matrices of cosines, as relational distillation has it (Park et al., arXiv
1904.05068, there of distances and angles), behind a linear projection.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def item_pair_loss(
    vector_NM: Tensor, score_NN: Tensor, projection_MP: Tensor, own_N: Tensor | None = None
) -> Tensor:
    """``mean_{i != j} (cos(v_i W, v_j W) - s_ij)^2`` over the ordered pairs of N items; 0 for less than two.

    It holds N x N cosines at once.

    Args:
        vector_NM: the student's vectors of the items.
        score_NN: s, what the other space says of every pair; its diagonal does not count.
        projection_MP: W.
        own_N: True for the items whose pairs are summed, still divided by the number of all pairs: the shares
            of processes add up to the whole. None: all of them.
    """
    projected_NP = F.normalize(vector_NM.float() @ projection_MP.float(), dim=-1)
    pairs = len(vector_NM) * (len(vector_NM) - 1)
    difference_NN = projected_NP @ projected_NP.T - score_NN
    squared_NN = difference_NN.square().fill_diagonal_(0.0)
    if own_N is not None:
        squared_NN = squared_NN[own_N]
    return squared_NN.sum() / max(1, pairs)
