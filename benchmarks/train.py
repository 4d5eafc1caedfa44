"""How fast does a CPU train, beside sentence-transformers, and what do experts cost?

One step of contrastive training from texts to moved weights, tokenisation included. Ours is that of
`moembed train`; theirs is CachedMultipleNegativesRankingLoss with the best of a few mini-batch sizes, without
the overhead of their Trainer. Same pairs, lengths, temperature, precision and optimiser; all-MiniLM-L6-v2,
dense, and with every second layer upcycled to eight experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.machine import choose_precision
from moembed.runs.bench import Options, Row, Timing, Timings, clock, missing, speed_row, time_row
from moembed.training.contrastive.settings import ContrastiveConfig, LossConfig
from moembed.training.contrastive.task import Mixture
from moembed.training.contrastive.train import train_contrastive
from moembed.types import Pair

from . import models, texts
from .runtimes import sentence_transformer

QUERY_LENGTH, DOCUMENT_LENGTH = 32, 128
TEMPERATURE = 0.05
MINI_BATCHES = (32, 64, 128)
PEER = "sentence-transformers"


def rows(options: Options) -> Iterator[Row]:
    pairs = texts.pairs(256 if options.quick else 1024)
    steps: dict[str, Callable[[], float]] = {
        "moembed, dense": our_step(read_folder(models.minilm()), pairs),
        "moembed, 8 experts": our_step(models.upcycled_minilm(), pairs),
    }
    note = missing("sentence-transformers")
    if not note:
        steps[PEER], note = their_step(pairs)
    few = max(1, options.repeats // 3)  # a step takes a minute
    rounds = [{name: step() for name, step in steps.items()} for _ in range(few)]
    timings: Timings = {name: Timing(tuple(seconds[name] for seconds in rounds)) for name in steps}

    question = f"a step of {len(pairs):,} pairs"
    if PEER in timings:
        yield speed_row(question, timings, PEER, len(pairs), "pairs/s", note=note)
        yield speed_row(question, timings, "moembed, dense", len(pairs), "pairs/s", PEER, ">= 2")
    else:
        yield Row(question, PEER, note=note or "")
        yield speed_row(question, timings, "moembed, dense", len(pairs), "pairs/s")
    yield time_row(question, timings, "moembed, 8 experts", "moembed, dense", "<= 1.5")


def our_step(parts: Parts, pairs: Sequence[Pair]) -> Callable[[], float]:
    """Seconds of a run of one step, as it counts them itself: without writing the model."""
    model = Embedder(parts)
    source = Source.from_pairs("pairs", pairs)
    config = ContrastiveConfig(
        steps=1, batch_size=len(pairs), query_length=QUERY_LENGTH, document_length=DOCUMENT_LENGTH,
        loss=LossConfig(temperature=TEMPERATURE),
    )  # fmt: skip

    def step() -> float:
        with TemporaryDirectory() as place:
            return train_contrastive(config, model, Mixture([source]), Path(place) / "run").seconds

    return step


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
