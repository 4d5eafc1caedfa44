"""The masked-LM task: sequences of one language -> masks, chunks -> what the guesses cost.

Batches and masks are functions of (seed, step), so a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from moembed.data.sampler import Sampler, mix
from moembed.embedder import Embedder
from moembed.folder.read import read_folder
from moembed.machine import choose_precision
from moembed.model.adapters import load_plain
from moembed.model.spec import EncoderSpec
from moembed.training.lora import Adapters
from moembed.training.masked_lm.corpus import Language
from moembed.training.masked_lm.heads import Heads
from moembed.training.masked_lm.masking import Vocabulary
from moembed.training.masked_lm.objective import (
    Chunk,
    Guesses,
    backward,
    choose,
    plans,
    prepare,
)
from moembed.training.masked_lm.settings import MaskedLMConfig
from moembed.training.parallel import World, summed
from moembed.training.task import Stateful, Terms
from moembed.types import UserError

_STREAM, _OBJECTIVES_STREAM = 11, 13  # of random numbers, drawn from the seed


@dataclass(frozen=True, slots=True)
class Split:
    """A language whose first ``num_train`` sequences are trained on and whose last are held out."""

    language: Language
    num_train: int


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """This process's sequences of a step, by their number in the batch, and the same masked and packed."""

    language: str
    sequences: Mapping[int, np.ndarray]
    chunks: list[Chunk]


def split(corpus: Sequence[Language], config: MaskedLMConfig) -> list[Split]:
    """Hold the last sequences of each language back; leave small languages out if ``config`` says so.

    Raises:
        UserError: no language is left.
    """
    parts = []
    for language in corpus:
        held_out = min(max(1, round(config.held_out.share * len(language))), config.held_out.sequences)
        part = Split(language, len(language) - held_out)
        if part.num_train >= config.batch_size or config.small_languages == "refuse":
            parts.append(part)
    if not parts:
        raise UserError(
            f"no language has {config.batch_size} sequences of {config.sequence_length} tokens, so there is "
            "no batch to learn from; lower batch_size or sequence_length, or add texts"
        )
    return parts


def _require_causal(spec: EncoderSpec) -> None:
    """Raises UserError: experts chosen by a look at the whole text, which gives away what is to guess."""
    for number, layer in enumerate(spec.layers):
        router = layer.moe.router if layer.moe else None
        if router and (
            router.kind in ("expert_choice", "soft_merging") or router.capacity_factor is not None
        ):
            what = "a capacity" if router.capacity_factor is not None else f"the kind {router.kind}"
            raise UserError(
                f"the router of layer {number} has {what}, which looks at the whole text, while the "
                "objective causal guesses each token from those before it; give causal no share, or take "
                "another router"
            )


class MaskedLMTask:
    """Batches of sequences, each of one language, whose hidden tokens are guessed."""

    workers = 1

    def __init__(
        self, config: MaskedLMConfig, model: Embedder, heads: Heads, corpus: Sequence[Language], world: World
    ) -> None:
        """Raises UserError: a language with fewer sequences than a batch, no mask token."""
        if config.batch_size < world.size:
            raise UserError(
                f"batch_size {config.batch_size} is less than one for each of {world.size} processes"
            )
        self.config, self.model, self.heads, self.world = config, model, heads, world
        self.parts = split(corpus, config)
        sizes = [part.num_train for part in self.parts]
        names = [part.language.name for part in self.parts]
        weights = mix(sizes, [1.0] * len(sizes), config.language_exponent)
        self.sampler = Sampler(sizes, weights, config.batch_size, config.seed, names)
        self.vocabulary = Vocabulary.of(model.tokenizer.backend)
        self.plans = plans(config)
        if "causal" in self.plans:
            _require_causal(model.encoder.spec)
        self.precision = choose_precision(config.precision, model.device)
        self.adapters = Adapters.of(model.encoder, config.lora, config.seed)
        self.module: nn.Module = Guesses(model, heads)
        self.parallel = summed(self.module, world)
        model.encoder.activation_checkpointing = config.activation_checkpointing

    def batch(self, step: int) -> MaskedBatch:
        number, rows = self.sampler.batch(step)
        language = self.parts[number].language
        sequences = {i: language.sequence(int(rows[i])) for i in self.world.share(len(rows))}
        key, which = ([self.config.seed, stream, step] for stream in (_STREAM, _OBJECTIVES_STREAM))
        objective = {i: choose(self.config.shares, which, i) for i in sequences}
        chunks = []
        for name, plan in self.plans.items():
            some = {i: token_S for i, token_S in sequences.items() if objective[i] == name}
            chunks += prepare(some, self.vocabulary, plan, self.config.chunk_tokens, key)
        return MaskedBatch(language.name, sequences, chunks)

    def backward(self, step: int, batch: MaskedBatch) -> Terms:
        device = self.model.device
        costs = backward(self.parallel, batch.chunks, self.config.router, device, self.precision, self.world)
        log = {
            "mlm": costs.mlm, "decoder": costs.decoder, "router_loss": costs.router,
            "accuracy": costs.accuracy, "tokens": costs.tokens, "source": batch.language,
        }  # fmt: skip
        if len(self.plans) > 1:
            log["by_objective"] = {name: round(mean, 5) for name, mean in costs.by_objective.items()}
        return Terms(costs.loss, self.config.batch_size, 0, costs.stats, log)

    def update(self, terms: Terms) -> Mapping[str, Any]:
        return {}

    def examples(self, batch: MaskedBatch) -> list[dict[str, Any]]:
        rows = [row.tolist() for row in batch.sequences.values()]
        texts = self.model.tokenizer.backend.decode_batch(rows)
        return [{"text": text, "language": batch.language} for text in texts]

    def contents(self) -> dict[str, str]:
        return {part.language.name: part.language.fingerprint() for part in self.parts}

    def states(self) -> dict[str, Stateful]:
        return {"heads": self.heads, **self.adapters}

    def write(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def read(self, folder: Path) -> None:
        parts = read_folder(folder)
        load_plain(self.model.encoder, parts.state)
        self.model.pooling.load(parts.pooling_state)
        self.model.head.load(parts.head_state)
