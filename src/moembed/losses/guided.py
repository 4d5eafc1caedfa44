"""False negatives as another model sees them: candidates that it holds nearer to a query than the positive.

Source: Solatorio, *GISTEmbed*, arXiv 2402.16829; the two margins are those that sentence-transformers added
to it. The original masks query-query and document-document scores too, which our losses do not have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moembed.losses.negatives import Duplicates, Entries, equal_numbers

_BLOCK = 2**22  # most scores held at a time


@dataclass(frozen=True, slots=True)
class Guided:
    """Duplicates, and what a guide adds to them: in the place of `Duplicates` wherever a loss takes a mask.

    ``query_P``, ``candidate_P`` list the entries that the guide masks; ``mirrored`` those of the mirrored
    loss, in which a positive looks for its query; None where no loss asks for it.
    """

    known: Duplicates
    query_P: Tensor
    candidate_P: Tensor
    mirrored: Entries | None = None

    @property
    def positive_Q(self) -> Tensor:
        return self.known.positive_Q

    def true_entries(self, row_R: Tensor) -> Entries:
        """As `Duplicates.true_entries`; an entry that both mask is listed once."""
        place_P, known_P = self.known.true_entries(row_R)
        added_P, entry_P = equal_numbers(row_R, self.query_P)
        candidates = len(self.known.text_N)
        place = torch.cat([place_P * candidates + known_P, added_P * candidates + self.candidate_P[entry_P]])
        place = torch.unique(place)
        return torch.div(place, candidates, rounding_mode="floor"), place % candidates

    def mirror(self) -> Guided:
        """The same relation seen from the positives; made for a mirrored loss, or an error of ours."""
        assert self.mirrored is not None
        return Guided(self.known.mirror(), *self.mirrored)

    def to(self, device: torch.device) -> Guided:
        mirrored = tuple(part.to(device) for part in self.mirrored) if self.mirrored else None
        return Guided(
            self.known.to(device),
            self.query_P.to(device),
            self.candidate_P.to(device),
            mirrored,  # type: ignore[arg-type]
        )


def nearer_than_positive(
    query_QM: Tensor, document_NM: Tensor, positive_Q: Tensor, margin: float = 0.0, relative: bool = False
) -> Entries:
    """Query and candidate of every entry with ``s_qn > t_q``, in the order of the queries.

    ``t_q = s_q+ - margin``, or relative ``t_q = s_q+ - margin * |s_q+|``. The positive itself is never one.

    Args:
        query_QM, document_NM: the guide's unit vectors.
    """
    found: list[Entries] = []
    rows = max(1, _BLOCK // max(1, len(document_NM)))
    for row_R in torch.split(torch.arange(len(query_QM)), rows):
        score_RN = query_QM[row_R] @ document_NM.T
        positive_R1 = score_RN.gather(1, positive_Q[row_R, None])
        bound_R1 = positive_R1 - margin * (positive_R1.abs() if relative else 1.0)
        score_RN.scatter_(1, positive_Q[row_R, None], float("-inf"))
        place_P, candidate_P = (score_RN > bound_R1).nonzero(as_tuple=True)
        found.append((row_R[place_P], candidate_P))
    return torch.cat([rows for rows, _ in found]), torch.cat([columns for _, columns in found])


def guided(
    known: Duplicates, query_QM: Tensor, document_NM: Tensor, margin: float, relative: bool, mirrored: bool
) -> Guided:
    """The mask of a batch, given the guide's vectors of its queries and of its candidates."""
    entries = nearer_than_positive(query_QM, document_NM, known.positive_Q, margin, relative)
    back = None
    if mirrored:
        own_Q = torch.arange(len(query_QM))
        back = nearer_than_positive(document_NM[known.positive_Q], query_QM, own_Q, margin, relative)
    return Guided(known, *entries, back)
