"""The contrastive task: which pairs make up a step, what their vectors cost, and what moves beside them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moembed.data.sampler import Sampler
from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.folder.read import read_folder
from moembed.losses.shaped import Tally
from moembed.machine import choose_precision
from moembed.model.adapters import load_plain
from moembed.training.contrastive import gradcache
from moembed.training.contrastive.balance import Balance
from moembed.training.contrastive.batch import (
    PairBatch,
    SourceFormat,
    prepare,
    with_guide,
    with_items,
    with_scores,
    with_teachers,
)
from moembed.training.contrastive.guide import Guide
from moembed.training.contrastive.item_pairs import ItemSpace
from moembed.training.contrastive.objective import (
    Objective,
    own_negatives,
    require_late_interaction,
    require_suited,
)
from moembed.training.contrastive.schedules import at, values
from moembed.training.contrastive.settings import ContrastiveConfig, SourceOptions
from moembed.training.contrastive.tags import SourceTags
from moembed.training.contrastive.task_types import require_ranking, task_notes
from moembed.training.contrastive.teachers import Teachers
from moembed.training.lora import Adapters
from moembed.training.monitors.routing import RoutingProbe
from moembed.training.parallel import World, summed, unsummed
from moembed.training.task import Stateful, Terms, distinct
from moembed.types import Batch, Encoded, UserError


@dataclass(frozen=True, slots=True)
class Mixture:
    """What pairs are drawn from.

    Attributes:
        weights: relative number of batches of each source; default: as many of each.
        options: of each source, its own prompts and loss.
        validation: sources for the held-out loss alone.
    """

    sources: Sequence[Source]
    weights: Sequence[float] = ()
    options: Sequence[SourceOptions] = ()
    validation: Sequence[Source] = ()

    def contents(self) -> dict[str, str]:
        """Name -> fingerprint of every source."""
        sources = [*self.sources, *self.validation]
        names = [source.name for source in self.sources]
        names += [f"validation {source.name}" for source in self.validation]
        own = zip(distinct(names), sources, strict=True)
        return {name: source.fingerprint() for name, source in own}


class ContrastiveTask:
    """Batches of pairs, each of one source; GradCache over the chunks of a batch; the routers' balance."""

    def __init__(self, config: ContrastiveConfig, model: Embedder, mixture: Mixture, world: World) -> None:
        """Raises UserError: fewer pairs than a batch, an unknown prompt, a loss that does not suit it."""
        smallest = min([config.batch_size, *map(int, config.schedules.get("batch_size", {}).values())])
        if smallest < world.size:
            raise UserError(f"batch_size {smallest} is less than one pair for each of {world.size} processes")
        asked = {"evaluate": config.evaluate is not None, "item_pairs": config.item_pairs is not None}
        require_late_interaction(config.loss, model.pooling.config, world.size, asked)
        options = mixture.options or [SourceOptions()] * len(mixture.sources)
        require_ranking(config, {option.task_type for option in options})
        self.config, self.model, self.mixture, self.world = config, model, mixture, world
        sources = mixture.sources
        self.forms = [SourceFormat.of(model, option, config.loss) for option in options]
        spec = model.encoder.spec
        self.tags = [SourceTags.of(spec, *pair) for pair in zip(sources, options, strict=True)]
        self.names = distinct(source.name for source in sources)
        self.notes = [
            note for pair in zip(sources, options, strict=True) for note in task_notes(*pair, config)
        ]
        self.sizes = [num_train_rows(source, config) for source in sources]
        self.sampler = sampler_of(config, mixture)
        self.drawing = threading.Lock()  # the sampler and the sources remember where they were read last

        require_suited(
            config.loss, {form.loss for form in self.forms}, {form.task_type for form in self.forms}
        )
        retrieving = zip(sources, self.forms, strict=True)
        self.notes += [
            n for source, form in retrieving if not form.scored for n in own_negatives(config.loss, source)
        ]
        self.adapters = Adapters.of(model.encoder, config.lora, config.seed)
        self.notes += [adapters.sentence for adapters in self.adapters.values()]
        self.objective = Objective(config.loss, model, config.item_pairs)
        self.balance = Balance(config.loss, model)
        self.module: nn.Module = nn.ModuleDict({"model": model, "objective": self.objective})
        self.parallel = summed(model, world)
        self.probe = RoutingProbe(model, config.diagnose_every, world)
        self.embed = embedding(model, config, list(self.objective.depths), self.parallel)
        self.guide, self.teachers = Guide.open(config.guide), Teachers.open(config.distill)
        self.items = ItemSpace.open(config.item_pairs)
        self.notes += self.items.notes(sources) if self.items else []
        self.workers = config.workers
        model.encoder.activation_checkpointing = config.activation_checkpointing

    @property
    def steps(self) -> int | None:
        """Of the whole run, where that is known."""
        if self.config.epochs is not None:
            return max(1, round(self.config.epochs * self.sampler.total_steps))
        return self.config.steps

    def at(self, step: int) -> ContrastiveConfig:
        """The config as its schedules have it at this step."""
        return at(self.config, step / self.steps) if self.steps else self.config

    def batch(self, step: int) -> PairBatch:
        config = self.at(step)
        with self.drawing:
            source, rows = self.sampler.batch(step)
            rows = rows[: config.batch_size]
            drawn, some, own = self.mixture.sources[source], rows.tolist(), self.tags[source]
            pairs = drawn.pairs(some)
            languages = [language or "" for language in drawn.languages(some)]
            tags = None if own is None else own.numbers(drawn, some)
        form, tokenizer = self.forms[source], self.model.tokenizer
        batch = prepare(pairs, form, tokenizer, config, self.world, source, languages, tags)
        seed = (config.seed * 1_000_003 + step) % 2**63  # of chance in the loss, on every process
        batch = replace(batch, seed=seed)
        if self.items:
            batch = with_items(batch, self.items, config.negatives)
        if form.task_type != "retrieval":  # scores and labels say it themselves
            return batch
        if self.teachers:
            batch = with_teachers(batch, self.teachers, config.negatives)
        elif config.distill:
            batch = with_scores(batch, config.distill, config.negatives)
        return batch if self.guide is None else with_guide(batch, self.guide, config.negatives)

    def backward(self, step: int, batch: PairBatch) -> Terms:
        observe = self.probe.watch(step, batch.groups, batch.chunks.batches, batch.group_CB)
        tally = Tally()
        loss = partial(self.objective, batch=batch, shape=self.at(step).loss, tally=tally)
        costs = gradcache.backward(
            self.embed, batch.chunks, loss, self.balance.loss, self.world, observe,
            partial(unsummed, self.parallel),
        )  # fmt: skip
        for parameter in self.objective.parameters():  # a number: the share of each process of its gradient
            if parameter.grad is not None:
                self.world.sum(parameter.grad)
        tokens, cut = self.world.sum(torch.tensor([batch.tokens, batch.truncated])).tolist()
        kind = "info_nce" if batch.score_Q is None else "cosent"
        log = {
            kind: costs.contrastive, "router_loss": costs.router, "tokens": tokens,
            "same_negatives": batch.same, "source": self.names[batch.source],
        }  # fmt: skip
        if batch.distilled:
            log["score_kl"] = round(float(self.world.sum(torch.tensor(self.objective.score_kl))), 6)
        if batch.items:
            found = self.world.sum(torch.tensor(self.objective.item_pairs))
            log |= {"item_pairs": round(float(found), 6), "items": len(batch.items.place_I)}
        log |= {} if batch.guided is None else {"guided_negatives": round(batch.guided, 5)}
        log |= self._counted(tally) if batch.score_Q is None else {}
        if self.config.schedules and self.steps:
            log["schedules"] = values(self.config.schedules, step / self.steps)
        return Terms(costs.contrastive + costs.router, len(batch.pairs), cut, costs.stats, log)

    def _counted(self, tally: Tally) -> dict[str, float]:
        """Means over the queries of all processes: negatives that count, and the weights of queries."""
        sums = torch.tensor([tally.queries, tally.effective, tally.weight], dtype=torch.float64)
        queries, effective, weight = self.world.sum(sums).tolist()
        if not queries:  # pairs with scores have no negatives
            return {}
        weights = {"mean_weight": round(weight / queries, 5)} if self.config.loss.weight else {}
        return {"effective_negatives": round(effective / queries, 2), **weights}

    def update(self, terms: Terms) -> Mapping[str, Any]:
        self.objective.after_step()
        self.balance.update(terms.router)
        return self.objective.learned()

    def examples(self, batch: PairBatch) -> list[dict[str, Any]]:
        return [pair.row() for pair in batch.pairs]

    def contents(self) -> dict[str, str]:
        return self.mixture.contents()

    def states(self) -> dict[str, Stateful]:
        states: dict[str, Stateful] = {"objective": self.objective, "balance": self.balance, **self.adapters}
        return states | ({"queue": self.objective.queue} if self.objective.queue is not None else {})

    def write(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def read(self, folder: Path) -> None:
        """Raises UserError: the checkpoint's model cuts texts elsewhere, so its run was another one."""
        parts = read_folder(folder)
        before, now = parts.tokenizer.max_length, self.model.tokenizer.max_length
        if before != now:
            raise UserError(
                f"{folder} cut texts at {before} tokens where this run would read {now}, as an older version "
                "did without a word: train into another folder"
            )
        load_plain(self.model.encoder, parts.state)
        self.model.pooling.load(parts.pooling_state)
        self.model.head.load(parts.head_state)

    @torch.no_grad()
    def loss(self, batch: PairBatch) -> float:
        """The loss of a batch, all of it, without a gradient and without what the recipe adds to its kind."""
        vectors: dict[int, Tensor] = {}
        for chunk, row_B in zip(batch.chunks.batches, batch.chunks.row_CB, strict=True):
            for depth, vector_BM in self.embed(chunk).by_depth.items():
                if depth not in vectors:
                    vectors[depth] = vector_BM.new_zeros(batch.chunks.rows, vector_BM.shape[1])
                vectors[depth][row_B] = vector_BM
        return float(self.objective(vectors, batch, plain=True))


def embedding(
    model: Embedder, config: ContrastiveConfig, depths: Sequence[int], forward: nn.Module | None = None
) -> Callable[[Batch], Encoded]:
    """Embeds a chunk in the precision of training; ``forward``: a wrapper to call in place of ``model``."""
    kind, precision = model.device.split(":")[0], choose_precision(config.precision, model.device)

    def embed(chunk: Batch) -> Encoded:
        with torch.autocast(kind, precision, enabled=precision != torch.float32):
            encoded: Encoded = (forward or model)(chunk.to(model.device), depths)
            return encoded

    return embed


def sampler_of(config: ContrastiveConfig, mixture: Mixture) -> Sampler:
    """What decides which pairs make up a step."""
    sources = mixture.sources
    sizes = [num_train_rows(source, config) for source in sources]
    weights = mixture.weights or [1.0] * len(sources)
    names = distinct(source.name for source in sources)
    return Sampler(sizes, weights, config.batch_size, config.seed, names)


def num_train_rows(source: Source, config: ContrastiveConfig) -> int:
    """How many rows of a source, from the first on, are trained on; the others are held out."""
    return len(source) - round(config.held_out * len(source))
