"""The loss of a contrastive step, as a function of the vectors of its texts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from moembed.embedder import Embedder
from moembed.losses.contrastive import LOSSES
from moembed.losses.nested import by_depth, matryoshka
from moembed.losses.pairs import by_scores
from moembed.training.contrastive.batch import PairBatch
from moembed.training.contrastive.settings import LARGEST_SCALE, LossConfig
from moembed.types import UserError


class Objective(nn.Module):
    """The contrastive loss over Matryoshka prefixes and depths, at a fixed or a learned temperature."""

    def __init__(self, config: LossConfig, model: Embedder) -> None:
        super().__init__()
        last = model.encoder.spec.num_layers
        self.depths = config.depths or {last: 1.0}
        if max(self.depths) != last or min(self.depths) < 0:
            raise UserError(
                f"loss.depths {list(self.depths)} must end with the last of the model's {last} layers"
            )
        self.nested = config.matryoshka
        if self.nested and max(self.nested.dims) > model.dim:
            raise UserError(
                f"loss.matryoshka.dims {list(self.nested.dims)} go beyond the model's {model.dim}"
            )
        if self.nested:
            model.dims = tuple(sorted(self.nested.dims, reverse=True))
        self.fixed = config.temperature
        start = torch.tensor(-math.log(config.temperature), device=model.device)
        self.log_scale = nn.Parameter(start) if config.learn_temperature else None

    @property
    def temperature(self) -> float | Tensor:
        return self.fixed if self.log_scale is None else (-self.log_scale).exp()

    def forward(self, vectors: dict[int, Tensor], batch: PairBatch) -> Tensor:
        """This process's share of the batch's loss; ``vectors[l]``, ``(B, M)``, are those after l layers."""
        loss = LOSSES[batch.loss] if batch.score_Q is None else by_scores(batch.score_Q, batch.temperature)
        if self.nested:
            loss = matryoshka(loss, self.nested.dims, self.nested.weights)
        device = next(iter(vectors.values())).device
        queries, known, weight_Q = len(batch.pairs), batch.known.to(device), batch.weight_Q
        mine_Q = None if weight_Q is None else weight_Q.to(device)
        parts = {depth: torch.split(v, [queries, len(v) - queries]) for depth, v in vectors.items()}
        total = by_depth(loss, self.depths)(
            {depth: query_QM for depth, (query_QM, _) in parts.items()},
            {depth: document_NM for depth, (_, document_NM) in parts.items()},
            known.positive_Q, known, mine_Q, temperature=self.temperature,
        )  # fmt: skip
        return total if mine_Q is None else total * (mine_Q.sum() / queries)

    @torch.no_grad()
    def clamp(self) -> None:
        """After the optimiser's step: a learned temperature stays in its bounds."""
        if self.log_scale is not None:
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))
