"""Masks that say which candidates are not negatives."""

from __future__ import annotations

from torch import Tensor


def duplicates(query_hash_Q: Tensor, document_hash_N: Tensor, positive_Q: Tensor) -> Tensor:
    """Candidates that are known to answer a query although they are not its own positive.

    ``mask[q, n]`` is True when candidate n has the text of q's positive, or is the positive of a query with
    q's text. Texts are compared by hash, never by vector: dropout makes equal texts differ, and near-equal
    vectors are what training is about.

    Returns:
        bool ``(Q, N)``; the positives themselves are False.
    """
    same_document_QN = document_hash_N[positive_Q][:, None] == document_hash_N[None, :]
    same_query_QQ = query_hash_Q[:, None] == query_hash_Q[None, :]
    mask_QN = same_document_QN.clone()
    mask_QN[:, positive_Q] |= same_query_QQ
    return mask_QN.scatter(1, positive_Q[:, None], False)
