"""What pretraining computes of one batch: sequences -> masks -> chunks -> losses, and the held-out loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from moembed.config import Strict
from moembed.embedder import Embedder
from moembed.losses.balance import balance_loss, z_loss
from moembed.losses.mlm import masked_lm_loss
from moembed.model.pooling import POOLING
from moembed.packing import token_budget
from moembed.training.distributed import ALONE, World
from moembed.training.heads import Heads
from moembed.training.masking import NOT_CHOSEN, Vocabulary, mask
from moembed.types import RouterStats


@dataclass(frozen=True)
class Objective:
    """How tokens are chosen, and whether a decoder must rebuild the text from its vector."""

    masking: str
    decoder: bool = False


OBJECTIVES: dict[str, Objective] = {
    "mlm": Objective("single_tokens"),
    "span": Objective("spans"),
    "retromae": Objective("single_tokens", decoder=True),
}


class RouterLossConfig(Strict):
    """Coefficients; both losses are means over the chunks that a batch is computed in."""

    balance: float = Field(default=0.01, ge=0)
    z: float = Field(default=0.0, ge=0)


class ObjectiveConfig(Strict):
    """``mask`` and ``decoder_mask`` are shares of a sequence's tokens, special ones not counted."""

    objective: Literal["mlm", "span", "retromae"] = "mlm"
    mask: float = Field(default=0.3, gt=0, lt=1)
    decoder_mask: float = Field(default=0.5, gt=0, lt=1)
    chunk_tokens: int = Field(default=16384, ge=1)  # tokens computed at a time: memory
    router: RouterLossConfig = RouterLossConfig()


@dataclass(frozen=True, slots=True)
class View:
    """Packed sequences as something sees them, and what it must guess."""

    input_T: Tensor
    target_T: Tensor

    @property
    def guessed(self) -> int:
        return int((self.target_T != NOT_CHOSEN).sum())

    def to(self, device: str) -> View:
        return View(self.input_T.to(device), self.target_T.to(device))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Sequences computed together, shortest first; ``decoder`` is the second, more heavily masked view."""

    length_B: tuple[int, ...]
    encoder: View
    decoder: View | None


@dataclass(frozen=True, slots=True)
class Terms:
    """Means over a batch: of guessed tokens for the losses, of chunks for the router's."""

    mlm: float
    decoder: float
    router: float
    accuracy: float
    stats: list[RouterStats]
    tokens: int

    @property
    def loss(self) -> float:
        return self.mlm + self.decoder + self.router


def prepare(
    sequences: Mapping[int, np.ndarray], vocabulary: Vocabulary, config: ObjectiveConfig, key: Sequence[int]
) -> list[Chunk]:
    """Mask sequences and pack them into chunks of at most ``chunk_tokens``.

    The mask of a sequence is a function of ``key`` and its number, whatever stands beside it.
    """
    objective = OBJECTIVES[config.objective]
    seen, hidden = {}, {}
    for number, token_S in sequences.items():
        rng = np.random.default_rng([*key, number])
        seen[number] = mask(token_S, vocabulary, config.mask, objective.masking, rng)
        if objective.decoder:
            hidden[number] = mask(token_S, vocabulary, config.decoder_mask, objective.masking, rng)
    chunks = []
    numbers = list(sequences)
    for group in token_budget([len(sequences[number]) for number in numbers], config.chunk_tokens):
        order = sorted((numbers[i] for i in group), key=lambda number: len(sequences[number]))
        decoder = _view([hidden[number] for number in order]) if objective.decoder else None
        lengths = tuple(len(sequences[number]) for number in order)
        chunks.append(Chunk(lengths, _view([seen[number] for number in order]), decoder))
    return chunks


def _view(masked: Sequence[tuple[np.ndarray, np.ndarray]]) -> View:
    inputs, targets = zip(*masked, strict=True)
    return View(torch.from_numpy(np.concatenate(inputs)), torch.from_numpy(np.concatenate(targets)))


def backward(
    model: Embedder, heads: Heads, chunks: Sequence[Chunk], config: ObjectiveConfig, precision: torch.dtype,
    world: World = ALONE,
) -> Terms:  # fmt: skip
    """Gradients of the batch's loss, chunk by chunk; those of several processes are the caller's to sum.

    ``loss = mean over guessed tokens [+ the same of the decoder] + router losses``. The means are over the
    whole batch, so the way it is split matters to the router losses alone: each chunk counts its own experts.
    """
    counts = [
        sum(chunk.encoder.guessed for chunk in chunks),
        sum(chunk.decoder.guessed for chunk in chunks if chunk.decoder),
        sum(sum(chunk.length_B) for chunk in chunks),
    ]
    guessed, rebuilt, tokens = (max(1, count) for count in world.sum(torch.tensor(counts)).tolist())
    sums = torch.zeros(4)
    total: list[RouterStats] = []
    for chunk in chunks:
        with _autocast(model, precision):
            mlm, decoder, right, stats = losses(model, heads, chunk)
            router = _router_loss(stats, config.router) * (sum(chunk.length_B) / tokens)
        terms = mlm / guessed, decoder / rebuilt, router, right / guessed
        torch.autograd.backward(terms[0] + terms[1] + terms[2].to(model.device))
        sums += torch.stack([term.detach().float().cpu() for term in terms])
        part = [layer.detach() for layer in stats]
        total = [a + b for a, b in zip(total, part, strict=True)] if total else part
    mlm_mean, decoder_mean, router_mean, accuracy = world.sum(sums).tolist()
    return Terms(mlm_mean, decoder_mean, router_mean, accuracy, world.sum_stats(total), int(tokens))


@torch.no_grad()
def evaluate(
    model: Embedder, heads: Heads, chunks: Sequence[Chunk], precision: torch.dtype, world: World = ALONE
) -> tuple[float, float]:
    """Mean loss in nats and accuracy over the guessed tokens; the model is left as it was found."""
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    for chunk in chunks:
        with _autocast(model, precision):
            mlm, _, right, _ = losses(model, heads, chunk)
        sums += torch.tensor([float(mlm), float(right), chunk.encoder.guessed])
    model.train(was_training)
    loss, correct, guessed = world.sum(sums).tolist()
    return loss / max(1, guessed), correct / max(1, guessed)


def losses(model: Embedder, heads: Heads, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor, list[RouterStats]]:
    """Sums over the guessed tokens of a chunk: the encoder's loss, the decoder's, the right guesses.

    The decoder reads the vector as the model pools it, and the embeddings of its own view of the text.
    """
    lengths, view = chunk.length_B, chunk.encoder.to(model.device)
    hidden, stats = model.encoder(view.input_T, lengths)
    (state_TD,) = hidden.values()
    mlm, right = _guess(model, heads, state_TD, view)
    if heads.decoder is None or chunk.decoder is None:
        return mlm, torch.zeros_like(mlm), right, stats
    view = chunk.decoder.to(model.device)
    embedded_TD = model.encoder(view.input_T, lengths, depths=[0])[0][0]
    decoded_TD = heads.decoder(embedded_TD, POOLING[model.pooling](state_TD, lengths), lengths)
    decoder, _ = _guess(model, heads, decoded_TD, view)
    return mlm, decoder, right, stats


def _guess(model: Embedder, heads: Heads, state_TD: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Only the states of guessed tokens go through the head."""
    chosen_T = view.target_T != NOT_CHOSEN
    state_TD = heads.mlm(state_TD[chosen_T])
    return masked_lm_loss(state_TD, view.target_T[chosen_T], model.encoder.word.weight, heads.mlm.bias_V)


def _router_loss(stats: Sequence[RouterStats], config: RouterLossConfig) -> Tensor:
    if not stats:
        return torch.zeros(())
    return config.balance * balance_loss(stats, stats) + config.z * z_loss(stats, stats)


def _autocast(model: Embedder, precision: torch.dtype) -> torch.autocast:
    return torch.autocast(model.device.split(":")[0], precision, enabled=precision != torch.float32)
