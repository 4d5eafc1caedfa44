"""The loss of a contrastive step, as a function of the vectors of its texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.losses.binary import correlation, imbalance, signs, with_signs
from moembed.losses.contrastive import LOSSES
from moembed.losses.item_pairs import item_pair_loss
from moembed.losses.late_interaction import by_maxsim
from moembed.losses.nested import Loss, by_depth, matryoshka
from moembed.losses.pairs import by_scores
from moembed.losses.score_distillation import score_kl
from moembed.losses.shaped import Tally
from moembed.losses.triplet import Choice
from moembed.model.pooling import PoolingConfig
from moembed.training.contrastive.batch import PairBatch
from moembed.training.contrastive.item_pairs import Items
from moembed.training.contrastive.queue import VectorQueue
from moembed.training.contrastive.settings import (
    LARGEST_SCALE,
    ItemPairsConfig,
    LossConfig,
    TripletConfig,
)
from moembed.training.contrastive.teachers import Distilled
from moembed.types import UserError


class Objective(nn.Module):
    """The contrastive loss over Matryoshka prefixes and depths, at a fixed or a learned temperature."""

    def __init__(self, config: LossConfig, model: Embedder, items: ItemPairsConfig | None = None) -> None:
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
        self.binary, self.bits = config.binary, (config.binary and config.binary.bits) or model.dim
        if self.bits > model.dim:
            raise UserError(f"loss.binary.bits {self.bits} go beyond the model's {model.dim} coordinates")
        self.config, self.fixed = config, config.temperature
        start = torch.tensor(-math.log(config.temperature), device=model.device)
        self.per_dim = self.nested.dims if self.nested and config.learn_temperature == "per_dim" else ()
        if self.per_dim:
            start = start.repeat(len(self.per_dim))
        self.log_scale = nn.Parameter(start) if config.learn_temperature else None
        self.projection_MP = None if items is None else _projection(items, model)
        self.score_kl = 0.0  # this process's share of the ranking term of the last step, before its weight
        self.item_pairs = 0.0  # likewise of the term of item pairs
        self.queue = VectorQueue(config.queue) if config.queue else None

    @property
    def temperature(self) -> float | Tensor:
        """One for all, or one for each of the dims."""
        return self.fixed if self.log_scale is None else (-self.log_scale).exp()

    def forward(
        self, vectors: dict[int, Tensor], batch: PairBatch, shape: LossConfig | None = None,
        tally: Tally | None = None, plain: bool = False,
    ) -> Tensor:  # fmt: skip
        """This process's share of the batch's loss; ``vectors[l]``, ``(B, M)``, are those after l layers.

        Args:
            shape: masks, weights, terms and length of the queue, where they are others than in the config.
            tally: counts negatives and weights, those of all prefixes and depths.
            plain: without masks, weights, terms and queue of the recipe's own, so that runs compare.
        """
        loss, temperature = LOSSES[batch.loss], self.temperature
        if batch.score_Q is not None:
            loss = by_scores(batch.score_Q, batch.temperature)
        of_signs = loss
        loss = self._late(loss, batch)
        if self.nested:
            own = [{"temperature": t} for t in torch.as_tensor(temperature)] if self.per_dim else None
            loss = matryoshka(loss, self.nested.dims, self.nested.weights, own)
        if self.binary and not plain:
            loss = with_signs(loss, of_signs, self.bits, self.binary.weight)
        device = next(iter(vectors.values())).device
        queries, weight_Q = len(batch.pairs), batch.weight_Q
        mine_Q = None if weight_Q is None else weight_Q.to(device)
        first = batch.query_rows
        query = {depth: vector_BM[:first] for depth, vector_BM in vectors.items()}
        document = {depth: vector_BM[first:] for depth, vector_BM in vectors.items()}
        known, owner_N = batch.known, batch.owner_N
        if self.queue is not None and not plain:
            document, known, owner_N = self.queue.join(document, batch, (shape or self.config).queue)
        known, owner_N = known.to(device), owner_N.to(device)
        if batch.loss == "triplet":
            options: dict[str, Any] = {"choice": self._choice(owner_N, plain)}
        else:
            shaping = None if plain else (shape or self.config).shaping(owner_N, batch.seed)
            options = {"temperature": temperature, "shaping": shaping}
        total = by_depth(loss, self.depths)(
            query, document, known.positive_Q, known, mine_Q, tally=tally, **options
        )
        if batch.distilled and not plain:
            ranking = self._ranking(batch.distilled, batch, device)
            own_NM = {depth: vector_BM[first:] for depth, vector_BM in vectors.items()}  # without a queue
            kl = by_depth(ranking, self.depths)(query, own_NM, known.positive_Q, None, mine_Q)
            self.score_kl = float(kl.detach() * (1 if mine_Q is None else mine_Q.sum() / queries))
            total = total + batch.distilled.weight * kl
        if self.binary and not plain:
            signs_BP = signs(vectors[max(self.depths)], self.bits)
            total = total + self.binary.balance * imbalance(signs_BP)
            total = total + self.binary.decorrelation * correlation(signs_BP)
        total = total if mine_Q is None else total * (mine_Q.sum() / queries)
        if batch.items and not plain:
            last_NM = vectors[max(self.depths)][first:]
            share = self._item_pairs(last_NM, batch.items, batch.owner_N, weight_Q)
            self.item_pairs = float(share.detach())
            total = total + batch.items.weight * share
        return total

    def _item_pairs(
        self, vector_NM: Tensor, items: Items, owner_N: Tensor, weight_Q: Tensor | None
    ) -> Tensor:
        """This process's share of the distance to the scores of another space: the pairs of its own items."""
        assert self.projection_MP is not None
        device = vector_NM.device
        other_IK = items.vector_IK.to(device)
        own_I = None if weight_Q is None else weight_Q[owner_N[items.place_I]].bool().to(device)
        chosen_IM = vector_NM[items.place_I.to(device)]
        return item_pair_loss(chosen_IM, other_IK @ other_IK.T, self.projection_MP, own_I)

    def _late(self, loss: Loss, batch: PairBatch) -> Loss:
        """The loss itself, or, with a model that makes a vector of every token, of their scores."""
        if batch.vectors_B is None:
            return loss
        queries = len(batch.pairs)
        return by_maxsim(
            loss, batch.vectors_B[:queries], batch.vectors_B[queries:], self.config.maxsim or "mean"
        )

    def _ranking(self, given: Distilled, batch: PairBatch, device: torch.device) -> Loss:
        """The distance of the student's ranking to the teachers', over the same prefixes as the loss."""
        kl = partial(score_kl, target_QN=given.target_QN.to(device), among_QN=given.among_QN.to(device))
        loss = self._late(kl, batch)
        if given.temperature is not None:
            found = [given.temperature]
        else:
            found = torch.as_tensor(self.temperature).detach().reshape(-1).tolist()
        if not self.nested:
            return partial(loss, temperature=found[0])
        each = found * len(self.nested.dims) if len(found) == 1 else found
        return matryoshka(loss, self.nested.dims, self.nested.weights, [{"temperature": t} for t in each])

    def _choice(self, owner_N: Tensor, plain: bool) -> Choice:
        own, mask = self.config.triplet or TripletConfig(), None if plain else self.config.mask
        return Choice(own.margin, own.negatives, mask.margin if mask else None, owner_N)

    @torch.no_grad()
    def after_step(self) -> None:
        """After the optimiser's step: a learned temperature stays in its bounds, the queue moves on."""
        if self.log_scale is not None:
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))
        if self.queue is not None:
            self.queue.push()

    def learned(self) -> dict[str, Any]:
        """For the log: the temperature, or that of each of the dims; nothing where it is fixed."""
        if self.log_scale is None:
            return {}
        found = torch.as_tensor(self.temperature)
        if self.per_dim:
            return {"temperatures": dict(zip(map(str, self.per_dim), found.tolist(), strict=True))}
        return {"temperature": found.item()}


def _projection(items: ItemPairsConfig, model: Embedder) -> nn.Parameter:
    """It begins as the first coordinates, so that nothing is left to chance."""
    dim = items.dim or model.dim
    if dim > model.dim:
        raise UserError(f"item_pairs.dim {dim} goes beyond the {model.dim} coordinates of the model")
    return nn.Parameter(torch.eye(model.dim, dim, device=model.device))


def require_late_interaction(
    config: LossConfig, pooling: PoolingConfig, processes: int, asked: Mapping[str, bool]
) -> None:
    """Refuse what a loss of token vectors lacks, and its setting where there are none.

    Args:
        asked: other parts of the recipe that need one vector of a text, and whether they are there.

    Raises:
        UserError: ``loss.maxsim`` for a model of one vector; for one of token vectors, terms that look at
            vectors of texts, a retrieval task, several processes.
    """
    if not pooling.per_token:
        if config.maxsim:
            raise UserError(
                f"loss.maxsim is of token vectors, and the model has pooling {pooling.name!r}: set pooling "
                "to tokens, or leave loss.maxsim out"
            )
        return
    without = {
        "loss.directions": bool(config.directions),
        "loss.mixing": config.mixing is not None,
        "loss.queue": config.queue > 0,
        "loss.binary": config.binary is not None,
        **asked,
    }
    if wrong := [name for name, there in without.items() if there]:
        raise UserError(
            f"{wrong[0]} needs one vector of a text, and pooling 'tokens' makes one of every token: take one "
            "of the two out"
        )
    if processes > 1:
        raise UserError("a model with pooling 'tokens' is trained in one process: start it without torchrun")


def require_suited(config: LossConfig, kinds: Set[str], task_types: Set[str]) -> None:
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
    if not config.in_batch and kinds != {"info_nce"}:
        other = min(kinds - {"info_nce"})
        raise UserError(
            "loss.in_batch false leaves a query its own hard negatives alone, which is for info_nce; "
            f"{other} looks at other pairs of the batch: {only.format('info_nce')}"
        )
    softmax = {name: getattr(config, name) for name in ("weight", "mixing", "learn_temperature")}
    for name, asked in softmax.items():
        if asked and "triplet" in kinds:
            told = only.format("a softmax loss (info_nce, symmetric_info_nce)")
            raise UserError(f"loss.{name} is of no use to the loss triplet: {told}")
    if config.queue and task_types != {"retrieval"}:
        other = min(task_types - {"retrieval"})
        raise UserError(
            "loss.queue keeps candidates without their labels or scores, and a source has the task_type "
            f"{other}: take one of the two out"
        )
    if config.triplet and "triplet" not in kinds:
        raise UserError("loss.triplet holds settings of the loss triplet, which no source has: set loss.kind")


def own_negatives(config: LossConfig, source: Source) -> list[str]:
    """What is to be said of a source whose queries have no negatives but their own.

    Raises:
        UserError: it has none.
    """
    if config.in_batch:
        return []
    having, _ = source.count_negatives()
    if not having:
        raise UserError(
            f"loss.in_batch is false and {source.name} has no hard negatives, so it could teach nothing: "
            "mine some with moembed mine, or leave in_batch out"
        )
    lacking = len(source) - having
    if not lacking:
        return []
    return [
        f"{source.name}: {lacking:,} of {len(source):,} pairs have no hard negative and teach nothing, for "
        "loss.in_batch is false"
    ]
