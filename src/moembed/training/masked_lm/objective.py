"""Masked chunks of sequences, and what the model's guesses of them cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from moembed.embedder import Embedder
from moembed.losses.balance import balance_loss, z_loss
from moembed.losses.mlm import masked_lm_loss
from moembed.packing import token_budget
from moembed.training.masked_lm.heads import Heads
from moembed.training.masked_lm.masking import NOT_CHOSEN, Vocabulary, mask, next_tokens
from moembed.training.masked_lm.settings import MaskedLMConfig, RouterLossConfig
from moembed.training.parallel import ALONE, World, unsummed
from moembed.types import RouterStats


@dataclass(frozen=True)
class MaskingPlan:
    """How the tokens to guess are chosen: of the encoder, and of a decoder that has the text's vector.

    ``masking`` None: each token is guessed from those before it, which are all that is seen.
    """

    masking: str | None
    rate: float
    decoder_rate: float | None = None
    objective: str = "mlm"


@dataclass(frozen=True)
class ObjectiveKind:
    """How tokens are chosen, and whether a decoder must rebuild the text from its vector."""

    name: str
    masking: str | None
    decoder: bool = False

    def plan(self, rate: float, decoder_rate: float) -> MaskingPlan:
        return MaskingPlan(self.masking, rate, decoder_rate if self.decoder else None, self.name)


_KINDS = (
    ObjectiveKind("mlm", "single_tokens"),
    ObjectiveKind("span", "spans"),
    ObjectiveKind("causal", None),
    # the last: chunks are computed in this order, and only in the last one the gradients of the decoder are
    # summed over processes
    ObjectiveKind("retromae", "single_tokens", decoder=True),
)
OBJECTIVES: dict[str, ObjectiveKind] = {kind.name: kind for kind in _KINDS}


def plans(config: MaskedLMConfig) -> dict[str, MaskingPlan]:
    """The objectives of a run, in the order of ``OBJECTIVES``."""
    return {
        name: kind.plan(config.mask, config.decoder_mask)
        for name, kind in OBJECTIVES.items()
        if name in config.shares
    }


def choose(shares: Mapping[str, float], key: Sequence[int], number: int) -> str:
    """The objective of a sequence of a batch, by chance in these shares, from ``key`` and its number.

    CodeGen2 (Nijkamp et al., arXiv 2305.02309) trains one model on a mixture of next tokens and corrupted
    spans, an objective for every sequence. Its abstract and other people's accounts were within reach, its
    formulas were not. There the decoder writes the hidden spans behind the text, each after a sentinel; here
    an encoder guesses every token of a span at its place, and the next token under a causal mask.
    """
    names = list(shares)
    if len(names) == 1:
        return names[0]
    return names[int(np.random.default_rng([*key, number]).choice(len(names), p=list(shares.values())))]


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
    """Sequences of one objective computed together, shortest first.

    ``decoder`` is masked more heavily, for the decoder. ``causal``: tokens see only those before them.
    """

    length_B: tuple[int, ...]
    encoder: MaskedTokens
    decoder: MaskedTokens | None
    objective: str = "mlm"
    causal: bool = False


@dataclass(frozen=True, slots=True)
class GuessLoss:
    """Means over a batch: of guessed tokens for the losses, of chunks for the router's.

    ``mlm``: of the encoder, whatever its objectives; ``by_objective``: of each one that the batch has.
    """

    mlm: float
    decoder: float
    router: float
    accuracy: float
    stats: list[RouterStats]
    tokens: int
    by_objective: Mapping[str, float]

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
        hidden, stats = model.encoder(tokens.input_T, lengths, causal=chunk.causal)
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
        if plan.masking is None:
            seen[number] = next_tokens(token_S, vocabulary)
            continue
        seen[number] = mask(token_S, vocabulary, plan.rate, plan.masking, rng)
        if plan.decoder_rate is not None:
            hidden[number] = mask(token_S, vocabulary, plan.decoder_rate, plan.masking, rng)
    chunks = []
    numbers = list(sequences)
    for group in token_budget([len(sequences[number]) for number in numbers], chunk_tokens):
        order = sorted((numbers[i] for i in group), key=lambda number: len(sequences[number]))
        decoder = _joined([hidden[number] for number in order]) if hidden else None
        lengths = tuple(len(sequences[number]) for number in order)
        encoder = _joined([seen[number] for number in order])
        chunks.append(Chunk(lengths, encoder, decoder, plan.objective, plan.masking is None))
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
    Of several objectives it is the sum of the means of each, times the share of the batch's sequences that
    have it: next tokens are guessed at every place, and would outweigh the few that are masked.
    """
    # ---- how much there is to guess in the whole batch
    guessed_O, rows_O, rebuilt, tokens = _counted(chunks, world)
    guessed, rows = max(1, sum(guessed_O.values())), sum(rows_O.values())

    # ---- every chunk's share; only the last one sums the gradients of the processes
    sums = torch.zeros(4)
    own = dict.fromkeys(OBJECTIVES, 0.0)
    total: list[RouterStats] = []
    for number, chunk in enumerate(chunks):
        with nullcontext() if number == len(chunks) - 1 else unsummed(guesses):
            with autocast(device, precision):
                mlm, decoder, right, stats = guesses(chunk)
                router = _router_loss(stats, config) * (sum(chunk.length_B) / tokens)
            whole = rows / rows_O[chunk.objective]  # 1 where the batch has one objective
            guessed_here = max(1, guessed_O[chunk.objective])
            terms = mlm / (guessed_here * whole), decoder / (rebuilt * whole), router, right / guessed
            torch.autograd.backward(terms[0] + terms[1] + terms[2].to(device))
        sums += torch.stack([term.detach().float().cpu() for term in terms])
        own[chunk.objective] += float(mlm.detach()) / guessed_here
        part = [layer.detach() for layer in stats]
        total = [a + b for a, b in zip(total, part, strict=True)] if total else part
    mlm_mean, decoder_mean, router_mean, accuracy = world.sum(sums).tolist()
    means = world.sum(torch.tensor(list(own.values()), dtype=torch.float64)).tolist()
    found = {name: mean for name, mean in zip(OBJECTIVES, means, strict=True) if rows_O[name]}
    stats = world.sum_stats(total)
    return GuessLoss(mlm_mean, decoder_mean, router_mean, accuracy, stats, tokens, found)


def _counted(chunks: Sequence[Chunk], world: World) -> tuple[dict[str, int], dict[str, int], int, int]:
    """Of the whole batch: guessed tokens and sequences by objective, tokens to rebuild, all tokens."""
    counts = [[0, 0] for _ in OBJECTIVES]
    names = list(OBJECTIVES)
    for chunk in chunks:
        count = counts[names.index(chunk.objective)]
        count[0] += chunk.encoder.guessed
        count[1] += len(chunk.length_B)
    rebuilt = sum(chunk.decoder.guessed for chunk in chunks if chunk.decoder)
    tokens = sum(sum(chunk.length_B) for chunk in chunks)
    flat = world.sum(torch.tensor([*chain.from_iterable(counts), rebuilt, tokens])).tolist()
    guessed, rows = (dict(zip(names, flat[place:-2:2], strict=True)) for place in (0, 1))
    return guessed, rows, max(1, flat[-2]), max(1, flat[-1])


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
