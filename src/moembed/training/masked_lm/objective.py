"""Masked chunks of sequences, and what the model's guesses of them cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from moembed.embedder import Embedder
from moembed.losses.balance import balance_loss, z_loss
from moembed.losses.mlm import masked_lm_loss
from moembed.packing import token_budget
from moembed.training.masked_lm.heads import Heads
from moembed.training.masked_lm.masking import NOT_CHOSEN, Vocabulary, mask
from moembed.training.masked_lm.settings import RouterLossConfig
from moembed.training.parallel import ALONE, World, unsummed
from moembed.types import RouterStats


@dataclass(frozen=True)
class MaskingPlan:
    """How the tokens to guess are chosen: of the encoder, and of a decoder that has the text's vector."""

    masking: str
    rate: float
    decoder_rate: float | None = None


@dataclass(frozen=True)
class ObjectiveKind:
    """How tokens are chosen, and whether a decoder must rebuild the text from its vector."""

    masking: str
    decoder: bool = False

    def plan(self, rate: float, decoder_rate: float) -> MaskingPlan:
        return MaskingPlan(self.masking, rate, decoder_rate if self.decoder else None)


OBJECTIVES: dict[str, ObjectiveKind] = {
    "mlm": ObjectiveKind("single_tokens"),
    "span": ObjectiveKind("spans"),
    "retromae": ObjectiveKind("single_tokens", decoder=True),
}


@dataclass(frozen=True, slots=True)
class MaskedTokens:
    """Packed sequences as something reads them, and what it must guess."""

    input_T: Tensor
    target_T: Tensor

    @property
    def guessed(self) -> int:
        return int((self.target_T != NOT_CHOSEN).sum())

    def to(self, device: str) -> MaskedTokens:
        return MaskedTokens(self.input_T.to(device), self.target_T.to(device))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Sequences computed together, shortest first; ``decoder`` is masked more heavily, for the decoder."""

    length_B: tuple[int, ...]
    encoder: MaskedTokens
    decoder: MaskedTokens | None


@dataclass(frozen=True, slots=True)
class GuessLoss:
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


class Guesses(nn.Module):
    """An encoder with its heads: masked chunks in, what the guesses cost out."""

    def __init__(self, model: Embedder, heads: Heads) -> None:
        super().__init__()
        self.model, self.heads = model, heads

    def forward(self, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor, list[RouterStats]]:
        """Sums over the guessed tokens of a chunk: the encoder's loss, the decoder's, the right guesses.

        The decoder reads the vector as the model pools it, and the embeddings of its own tokens.
        """
        model, heads, lengths = self.model, self.heads, chunk.length_B
        tokens = chunk.encoder.to(model.device)
        hidden, stats = model.encoder(tokens.input_T, lengths)
        (state_TD,) = hidden.values()
        mlm, right = self._guess(state_TD, tokens)
        if heads.decoder is None or chunk.decoder is None:
            return mlm, torch.zeros_like(mlm), right, stats
        tokens = chunk.decoder.to(model.device)
        embedded_TD = model.encoder(tokens.input_T, lengths, depths=[0])[0][0]
        decoded_TD = heads.decoder(embedded_TD, model.pooling(state_TD, lengths), lengths)
        decoder, _ = self._guess(decoded_TD, tokens)
        return mlm, decoder, right, stats

    def _guess(self, state_TD: Tensor, tokens: MaskedTokens) -> tuple[Tensor, Tensor]:
        """Only the states of guessed tokens go through the head."""
        chosen_T, head = tokens.target_T != NOT_CHOSEN, self.heads.mlm
        word_VD = self.model.encoder.word.weight
        return masked_lm_loss(head(state_TD[chosen_T]), tokens.target_T[chosen_T], word_VD, head.bias_V)


def prepare(
    sequences: Mapping[int, np.ndarray], vocabulary: Vocabulary, plan: MaskingPlan, chunk_tokens: int,
    key: Sequence[int],
) -> list[Chunk]:  # fmt: skip
    """Mask sequences and pack them into chunks of at most ``chunk_tokens``.

    The mask of a sequence is a function of ``key`` and its number, whatever stands beside it.
    """
    seen, hidden = {}, {}
    for number, token_S in sequences.items():
        rng = np.random.default_rng([*key, number])
        seen[number] = mask(token_S, vocabulary, plan.rate, plan.masking, rng)
        if plan.decoder_rate is not None:
            hidden[number] = mask(token_S, vocabulary, plan.decoder_rate, plan.masking, rng)
    chunks = []
    numbers = list(sequences)
    for group in token_budget([len(sequences[number]) for number in numbers], chunk_tokens):
        order = sorted((numbers[i] for i in group), key=lambda number: len(sequences[number]))
        decoder = _joined([hidden[number] for number in order]) if hidden else None
        lengths = tuple(len(sequences[number]) for number in order)
        chunks.append(Chunk(lengths, _joined([seen[number] for number in order]), decoder))
    return chunks


def _joined(masked: Sequence[tuple[np.ndarray, np.ndarray]]) -> MaskedTokens:
    inputs, targets = zip(*masked, strict=True)
    return MaskedTokens(torch.from_numpy(np.concatenate(inputs)), torch.from_numpy(np.concatenate(targets)))


def backward(
    guesses: nn.Module, chunks: Sequence[Chunk], config: RouterLossConfig, device: str,
    precision: torch.dtype, world: World = ALONE,
) -> GuessLoss:  # fmt: skip
    """Gradients of the batch's loss, chunk by chunk; ``guesses`` sums those of several processes.

    ``loss = mean over guessed tokens [+ the same of the decoder] + router losses``. The means are over the
    whole batch, so the way it is split matters to the router losses alone: each chunk counts its own experts.
    """
    # ---- how much there is to guess in the whole batch
    counts = [
        sum(chunk.encoder.guessed for chunk in chunks),
        sum(chunk.decoder.guessed for chunk in chunks if chunk.decoder),
        sum(sum(chunk.length_B) for chunk in chunks),
    ]
    guessed, rebuilt, tokens = (max(1, count) for count in world.sum(torch.tensor(counts)).tolist())

    # ---- every chunk's share; only the last one sums the gradients of the processes
    sums = torch.zeros(4)
    total: list[RouterStats] = []
    for number, chunk in enumerate(chunks):
        with nullcontext() if number == len(chunks) - 1 else unsummed(guesses):
            with autocast(device, precision):
                mlm, decoder, right, stats = guesses(chunk)
                router = _router_loss(stats, config) * (sum(chunk.length_B) / tokens)
            terms = mlm / guessed, decoder / rebuilt, router, right / guessed
            torch.autograd.backward(terms[0] + terms[1] + terms[2].to(device))
        sums += torch.stack([term.detach().float().cpu() for term in terms])
        part = [layer.detach() for layer in stats]
        total = [a + b for a, b in zip(total, part, strict=True)] if total else part
    mlm_mean, decoder_mean, router_mean, accuracy = world.sum(sums).tolist()
    return GuessLoss(mlm_mean, decoder_mean, router_mean, accuracy, world.sum_stats(total), int(tokens))


@torch.no_grad()
def measure(
    guesses: Guesses, chunks: Sequence[Chunk], precision: torch.dtype, world: World = ALONE
) -> tuple[float, float]:
    """Mean loss in nats and accuracy over the guessed tokens; the model is left as it was found."""
    was_training = guesses.training
    guesses.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    for chunk in chunks:
        with autocast(guesses.model.device, precision):
            mlm, _, right, _ = guesses(chunk)
        sums += torch.tensor([float(mlm), float(right), chunk.encoder.guessed])
    guesses.train(was_training)
    loss, correct, guessed = world.sum(sums).tolist()
    return loss / max(1, guessed), correct / max(1, guessed)


def _router_loss(stats: Sequence[RouterStats], config: RouterLossConfig) -> Tensor:
    if not stats:
        return torch.zeros(())
    return config.balance * balance_loss(stats, stats) + config.z * z_loss(stats, stats)


def autocast(device: str, precision: torch.dtype) -> torch.autocast:
    return torch.autocast(device.split(":")[0], precision, enabled=precision != torch.float32)
