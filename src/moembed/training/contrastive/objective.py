"""The loss of a contrastive step, as a function of the vectors of its texts."""

from __future__ import annotations

import math
from collections.abc import Set
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moembed.embedder import Embedder
from moembed.losses.contrastive import LOSSES
from moembed.losses.nested import Loss, by_depth, matryoshka
from moembed.losses.pairs import by_scores
from moembed.losses.score_distillation import score_kl
from moembed.losses.shaped import Tally
from moembed.losses.triplet import Choice
from moembed.training.contrastive.batch import PairBatch
from moembed.training.contrastive.settings import LARGEST_SCALE, LossConfig, TripletConfig
from moembed.training.contrastive.teachers import Distilled
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
        self.config, self.fixed = config, config.temperature
        start = torch.tensor(-math.log(config.temperature), device=model.device)
        self.log_scale = nn.Parameter(start) if config.learn_temperature else None
        self.score_kl = 0.0  # this process's share of the ranking term of the last step, before its weight

    @property
    def temperature(self) -> float | Tensor:
        return self.fixed if self.log_scale is None else (-self.log_scale).exp()

    def forward(
        self, vectors: dict[int, Tensor], batch: PairBatch, tally: Tally | None = None, plain: bool = False
    ) -> Tensor:
        """This process's share of the batch's loss; ``vectors[l]``, ``(B, M)``, are those after l layers.

        Args:
            tally: counts negatives and weights, those of all prefixes and depths.
            plain: without masks, weights and terms of the recipe's own, so that runs compare.
        """
        loss = LOSSES[batch.loss] if batch.score_Q is None else by_scores(batch.score_Q, batch.temperature)
        if self.nested:
            loss = matryoshka(loss, self.nested.dims, self.nested.weights)
        device = next(iter(vectors.values())).device
        queries, known, weight_Q = len(batch.pairs), batch.known.to(device), batch.weight_Q
        mine_Q = None if weight_Q is None else weight_Q.to(device)
        parts = {depth: torch.split(v, [queries, len(v) - queries]) for depth, v in vectors.items()}
        owner_N = batch.owner_N.to(device)
        if batch.loss == "triplet":
            options: dict[str, Any] = {"choice": self._choice(owner_N, plain)}
        else:
            shaping = None if plain else self.config.shaping(owner_N, batch.seed)
            options = {"temperature": self.temperature, "shaping": shaping}
        total = by_depth(loss, self.depths)(
            {depth: query_QM for depth, (query_QM, _) in parts.items()},
            {depth: document_NM for depth, (_, document_NM) in parts.items()},
            known.positive_Q, known, mine_Q, tally=tally, **options,
        )  # fmt: skip
        if batch.distilled and not plain:
            ranking = self._ranking(batch.distilled, device)
            kl = by_depth(ranking, self.depths)(
                {depth: query_QM for depth, (query_QM, _) in parts.items()},
                {depth: document_NM for depth, (_, document_NM) in parts.items()},
                known.positive_Q, None, mine_Q,
            )  # fmt: skip
            self.score_kl = float(kl.detach() * (1 if mine_Q is None else mine_Q.sum() / queries))
            total = total + batch.distilled.weight * kl
        return total if mine_Q is None else total * (mine_Q.sum() / queries)

    def _ranking(self, given: Distilled, device: torch.device) -> Loss:
        """The distance of the student's ranking to the teachers', over the same prefixes as the loss."""
        temperature = float(self.temperature) if given.temperature is None else given.temperature
        loss = partial(
            score_kl,
            target_QN=given.target_QN.to(device),
            among_QN=given.among_QN.to(device),
            temperature=temperature,
        )
        return matryoshka(loss, self.nested.dims, self.nested.weights) if self.nested else loss

    def _choice(self, owner_N: Tensor, plain: bool) -> Choice:
        own, mask = self.config.triplet or TripletConfig(), None if plain else self.config.mask
        return Choice(own.margin, own.negatives, mask.margin if mask else None, owner_N)

    @torch.no_grad()
    def clamp(self) -> None:
        """After the optimiser's step: a learned temperature stays in its bounds."""
        if self.log_scale is not None:
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))


def require_suited(config: LossConfig, kinds: Set[str]) -> None:
    """Refuse settings of a loss that no source, or not every source, can follow.

    Raises:
        UserError: terms, weights or a temperature that a kind of loss does not have.
    """
    only = "take it out, or take {} for every source"
    if config.directions and kinds != {"info_nce"}:
        other = min(kinds - {"info_nce"})
        raise UserError(
            f"loss.directions are further terms of info_nce, and {other} has none: {only.format('info_nce')}"
        )
    softmax = {name: getattr(config, name) for name in ("weight", "mixing", "learn_temperature")}
    for name, asked in softmax.items():
        if asked and "triplet" in kinds:
            told = only.format("a softmax loss (info_nce, symmetric_info_nce)")
            raise UserError(f"loss.{name} is of no use to the loss triplet: {told}")
    if config.triplet and "triplet" not in kinds:
        raise UserError("loss.triplet holds settings of the loss triplet, which no source has: set loss.kind")
