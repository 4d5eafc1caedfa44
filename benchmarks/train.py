"""How fast does a CPU train, beside sentence-transformers, what do experts cost, and how near is the peak?

One step of contrastive training from texts to moved weights, tokenisation included. Ours is that of
`moembed train`; theirs is CachedMultipleNegativesRankingLoss under autocast with the best of a few
mini-batch sizes, without the overhead of their Trainer. Same pairs, lengths, temperature, precision and
optimiser; all-MiniLM-L6-v2, dense, and with every second layer upcycled to eight experts.

The share of the peak counts what the trainer ran, by a hook on its encoder: the forward pass of every
chunk, twice where GradCache embeds it twice, and two more for the backward pass; of experts, those a token
visits. The peak is the fastest large matrix product of the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.machine import choose_precision
from moembed.runs.bench import Options, Row, Timing, Timings, clock, missing, ratio, speed_row, time_row
from moembed.training.contrastive.settings import ContrastiveConfig, LossConfig
from moembed.training.contrastive.task import Mixture
from moembed.training.contrastive.train import train_contrastive
from moembed.types import Pair

from . import layers, models, texts
from .runtimes import sentence_transformer

QUERY_LENGTH, DOCUMENT_LENGTH = 32, 128
TEMPERATURE = 0.05
MINI_BATCHES = (32, 64, 128)
SMALL, LARGE = 128, 1024  # pairs of a step
PEER, DENSE, EXPERTS = "sentence-transformers", "moembed, dense", "moembed, 8 experts"
EXPERTS_TARGET, PEER_TARGET = "<= 1.35", ">= 2.5"
SHARES = {DENSE: ">= 45", EXPERTS: ">= 40"}


def rows(options: Options) -> Iterator[Row]:
    base = {DENSE: read_folder(models.minilm()), EXPERTS: models.upcycled_minilm()}
    # a small step, several times
    ours = {name: OurStep(parts, texts.pairs(SMALL)) for name, parts in base.items()}
    timings = in_turn({**ours, **products()}, options.repeats, warmup=1)
    yield from told(f"a step of {SMALL} pairs", SMALL, timings, ours)

    # a large step, which takes a minute: fewer times, the first of ours being warm
    pairs = texts.pairs(256 if options.quick else LARGE)
    ours = {name: OurStep(parts, pairs) for name, parts in base.items()}
    question, note = f"a step of {len(pairs):,} pairs", missing(PEER)
    peer: dict[str, Callable[[], float]] = {}
    if not note:
        peer[PEER], note = their_step(pairs)
    timings = in_turn({**ours, **peer, **products()}, max(1, options.repeats // 3), warmup=0)
    if peer:
        yield speed_row(question, timings, PEER, len(pairs), "pairs/s", note=note or "")
        yield speed_row(question, timings, DENSE, len(pairs), "pairs/s", PEER, PEER_TARGET)
    else:
        yield Row(question, PEER, note=note or "")
    yield from told(question, len(pairs), timings, ours)


def in_turn(steps: dict[str, Callable[[], float]], repeats: int, warmup: int) -> Timings:
    rounds = [{name: step() for name, step in steps.items()} for _ in range(warmup + repeats)][warmup:]
    return {name: Timing(tuple(seconds[name] for seconds in rounds)) for name in steps}


def told(question: str, pairs: int, timings: Timings, ours: dict[str, OurStep]) -> Iterator[Row]:
    yield speed_row(question, timings, DENSE, pairs, "pairs/s")
    yield speed_row(question, timings, EXPERTS, pairs, "pairs/s")
    yield time_row(f"{question}, time", timings, EXPERTS, DENSE, EXPERTS_TARGET)
    best, work = layers.peak(timings)
    yield speed_row(f"{question}: peak", timings, best, work / 1e9, "GFLOP/s")
    for name, step in ours.items():
        share = 100 * step.flops / work * ratio(timings, best, name)
        note = f"{step.forwards:.2f} forward passes"
        yield Row(f"{question}: share of the peak", name, share, "%", target=SHARES[name], note=note)


def products() -> dict[str, Callable[[], float]]:
    """Each of the products, some times, for one is over in a few hundredths of a second."""

    def step(product: Callable[[], object]) -> float:
        with torch.inference_mode():
            product()
            return min(clock(product) for _ in range(5))

    return {name: partial(step, layers.product(*shape)) for name, shape in layers.PRODUCTS.items()}


class OurStep:
    """Seconds of a run of one step, as it counts them itself: without writing the model.

    ``flops`` are the operations of the last step, ``forwards`` how often it embedded a token.
    """

    def __init__(self, parts: Parts, pairs: Sequence[Pair]) -> None:
        self.model, self.source = Embedder(parts), Source.from_pairs("pairs", pairs)
        self.config = ContrastiveConfig(
            steps=1, batch_size=len(pairs), query_length=QUERY_LENGTH, document_length=DOCUMENT_LENGTH,
            loss=LossConfig(temperature=TEMPERATURE),
        )  # fmt: skip
        self.flops, self.tokens, self.graded = 0.0, 0, 0
        self.model.encoder.register_forward_pre_hook(self._count)

    def __call__(self) -> float:
        self.flops, self.tokens, self.graded = 0.0, 0, 0
        with TemporaryDirectory() as place:
            trained = train_contrastive(self.config, self.model, Mixture([self.source]), Path(place) / "run")
        if not self.graded:
            raise RuntimeError("the trainer calls the encoder in a way that this benchmark does not see")
        return trained.seconds

    @property
    def forwards(self) -> float:
        return self.tokens / max(self.graded, 1)

    def _count(self, encoder: nn.Module, arguments: tuple[Any, ...]) -> None:
        token_T, length_B = arguments[:2]
        assert isinstance(token_T, Tensor)
        graded = torch.is_grad_enabled()
        self.flops += (3 if graded else 1) * models.flops(self.model.encoder.spec, length_B)
        self.tokens += len(token_T)
        self.graded += len(token_T) if graded else 0


def their_step(pairs: Sequence[Pair]) -> tuple[Callable[[], float], str]:
    """The step with the mini-batch size that is fastest on a few pairs, and a note that says which."""
    run = their_trainer()
    trial = {size: clock(partial(run, pairs[:: max(1, len(pairs) // 64)], size)) for size in MINI_BATCHES}
    best = min(trial, key=lambda size: trial[size])
    return lambda: clock(partial(run, pairs, best)), f"mini-batches of {best}"


def their_trainer() -> Callable[[Sequence[Pair], int], None]:
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    model = sentence_transformer(models.minilm(), torch.float32).train()
    preprocess = getattr(model, "preprocess", model.tokenize)  # the latter before version 6
    precision = choose_precision("auto", "cpu")

    def tokens(some: list[str], length: int) -> dict[str, torch.Tensor]:
        model.max_seq_length = length
        return dict(preprocess(some))

    def run(pairs: Sequence[Pair], mini_batch: int) -> None:
        loss = CachedMultipleNegativesRankingLoss(model, 1 / TEMPERATURE, mini_batch_size=mini_batch)
        optimiser = torch.optim.AdamW(model.parameters(), lr=2e-5)
        features = [
            tokens([pair.query for pair in pairs], QUERY_LENGTH),
            tokens([pair.document for pair in pairs], DOCUMENT_LENGTH),
        ]
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            value = loss(features, torch.arange(len(pairs)))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return run
