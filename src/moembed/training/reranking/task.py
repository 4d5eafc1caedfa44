"""The reranking task: which lists make up a step, what their scores cost, and what moves beside them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moembed.data.sampler import Sampler
from moembed.data.sources import Source
from moembed.folder.reranker import read_reranker
from moembed.losses.reranking import RERANKING_LOSSES
from moembed.machine import choose_precision
from moembed.model.adapters import load_plain
from moembed.reranker import Reranker
from moembed.training.contrastive import gradcache
from moembed.training.contrastive.balance import Balance
from moembed.training.lora import Adapters
from moembed.training.monitors.routing import unobserved
from moembed.training.parallel import World, summed, unsummed
from moembed.training.reranking.batch import ListBatch, prepare
from moembed.training.reranking.settings import RerankingConfig
from moembed.training.task import Stateful, Terms, distinct
from moembed.types import Batch, Encoded, UserError


class RerankingTask:
    """Batches of lists, each of one source. A score is a vector of one coordinate, so GradCache makes its
    gradient and the routers' balance exact over the chunks of a batch."""

    def __init__(
        self, config: RerankingConfig, model: Reranker, sources: Sequence[Source], weights: Sequence[float],
        world: World,
    ) -> None:  # fmt: skip
        """Raises UserError: fewer pairs than a batch, a source without negatives."""
        if config.batch_size < world.size:
            raise UserError(
                f"batch_size {config.batch_size} is less than one query for each of {world.size} processes"
            )
        self.config, self.model, self.sources, self.world = config, model, sources, world
        self.names = distinct(source.name for source in sources)
        self.sizes = [len(source) - round(config.held_out * len(source)) for source in sources]
        if not config.random_negatives:
            for source in sources:
                _require_negatives(source)
        self.sampler = Sampler(self.sizes, weights, config.batch_size, config.seed, self.names)
        self.drawing = threading.Lock()  # the sampler and the sources remember where they were read last
        self.adapters = Adapters.of(model.encoder, config.lora, config.seed)
        self.balance = Balance(config.loss, model)
        self.module: nn.Module = model
        self.parallel = summed(model, world)
        self.workers = config.workers
        self.precision = choose_precision(config.precision, model.device)
        model.encoder.activation_checkpointing = config.activation_checkpointing

    @property
    def steps(self) -> int | None:
        """Of the whole run, where that is known."""
        if self.config.epochs is not None:
            return max(1, round(self.config.epochs * self.sampler.total_steps))
        return self.config.steps

    def batch(self, step: int) -> ListBatch:
        with self.drawing:
            source, rows = self.sampler.batch(step)
            pairs = self.sources[source].pairs(rows.tolist())
        return prepare(pairs, self.model, self.config, [self.config.seed, step], self.world, source)

    def backward(self, step: int, batch: ListBatch) -> Terms:
        costs = gradcache.backward(
            self.embed, batch.chunks, partial(self.loss_of, batch=batch), self.balance.loss, self.world,
            unobserved, partial(unsummed, self.parallel),
        )  # fmt: skip
        tokens, cut = self.world.sum(torch.tensor([batch.tokens, batch.truncated])).tolist()
        log = {
            self.config.loss.kind: costs.contrastive, "router_loss": costs.router, "tokens": tokens,
            "candidates": len(batch.query_P), "same_negatives": batch.same, "alone": batch.alone,
            "source": self.names[batch.source],
        }  # fmt: skip
        return Terms(costs.contrastive + costs.router, len(batch.pairs), cut, costs.stats, log)

    def embed(self, chunk: Batch) -> Encoded:
        """The logits of a chunk, in the precision of training."""
        kind = self.model.device.split(":")[0]
        with torch.autocast(kind, self.precision, enabled=self.precision != torch.float32):
            encoded: Encoded = self.parallel(chunk.to(self.model.device))
            return encoded

    def loss_of(self, logits: dict[int, Tensor], batch: ListBatch) -> Tensor:
        """This process's share of the batch's loss, of the logits of all candidates."""
        (logit_P1,) = logits.values()
        device, queries, weight_Q = logit_P1.device, len(batch.pairs), batch.weight_Q
        mine_Q = None if weight_Q is None else weight_Q.to(device)
        loss = RERANKING_LOSSES[self.config.loss.kind](
            logit_P1[:, 0], batch.query_P.to(device), batch.positive_P.to(device), queries, mine_Q
        )
        return loss if mine_Q is None else loss * (mine_Q.sum() / queries)

    def update(self, terms: Terms) -> Mapping[str, Any]:
        self.balance.update(terms.router)
        return {}

    def examples(self, batch: ListBatch) -> list[dict[str, Any]]:
        return [pair.row() for pair in batch.pairs]

    def contents(self) -> dict[str, str]:
        own = zip(self.names, self.sources, strict=True)
        return {name: source.fingerprint() for name, source in own}

    def states(self) -> dict[str, Stateful]:
        return {"balance": self.balance, **self.adapters}

    def write(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def read(self, folder: Path) -> None:
        parts = read_reranker(folder)
        load_plain(self.model.encoder, parts.state)
        self.model.head.load_state_dict(parts.head_state)


def _require_negatives(source: Source) -> None:
    if not source.count_negatives()[0]:
        raise UserError(
            f"the pairs of {source.name} have no hard negatives, so there is nothing to compare a document "
            "with: make some with `moembed mine`, or set random_negatives"
        )
