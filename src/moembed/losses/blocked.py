"""Cross-entropy over very many candidates in the memory of one block of scores.

The gradient of each score is known as soon as its row is: softmax minus the target. So every block of
queries adds its share to the gradients of the vectors at once, in one buffer that is used again and again,
and neither scores nor masks of all queries ever exist together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moembed.losses.negatives import Mask, masked_entries


class BlockedCrossEntropy(torch.autograd.Function):
    """``sum_q weight_q * (logsumexp_n s_qn - s_q+)`` with ``s = scale * query @ document'``, all in fp32.

    Queries of weight 0 are left out. Gradients go to queries, documents and the scale, and the result can be
    differentiated once.
    """

    @staticmethod
    def forward(
        ctx: Any, query_QM: Tensor, document_NM: Tensor, scale: Tensor, positive_Q: Tensor,
        mask_QN: Mask | None, weight_Q: Tensor, block: int,
    ) -> Tensor:  # fmt: skip
        rows = max(1, block // len(document_NM))
        buffer_RN = query_QM.new_empty(min(rows, len(query_QM)), len(document_NM))
        query_gradient_QM, document_gradient_NM = torch.zeros_like(query_QM), torch.zeros_like(document_NM)
        total = query_QM.new_zeros(())
        for row_R in torch.split(weight_Q.nonzero()[:, 0], rows):
            positive_R, own_R = positive_Q[row_R], torch.arange(len(row_R), device=row_R.device)
            score_RN = torch.mm(query_QM[row_R], document_NM.T, out=buffer_RN[: len(row_R)]).mul_(scale)
            if mask_QN is not None:
                score_RN[masked_entries(mask_QN, row_R, positive_R)] = float("-inf")
            positive_score_R, largest_R = score_RN[own_R, positive_R], score_RN.amax(1)
            sum_R = score_RN.sub_(largest_R[:, None]).exp_().sum(1)
            total += weight_Q[row_R] @ (sum_R.log() + largest_R - positive_score_R)

            gradient_RN = score_RN.div_(sum_R[:, None])  # softmax
            gradient_RN[own_R, positive_R] -= 1
            gradient_RN.mul_((scale * weight_Q[row_R])[:, None])
            query_gradient_QM[row_R] = gradient_RN @ document_NM
            document_gradient_NM.addmm_(gradient_RN.T, query_QM[row_R])
        scale_gradient = (query_gradient_QM * query_QM).sum() / scale
        ctx.gradients = query_gradient_QM, document_gradient_NM, scale_gradient
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # in place, so only once
        query_QM, document_NM, scale = (gradient.mul_(outer[0]) for gradient in gradients)
        return query_QM, document_NM, scale, None, None, None, None
