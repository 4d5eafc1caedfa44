"""How near does one GPU come to its peak, and what do experts cost on it?

A layer of experts beside a dense block of equal active size on 65,536 random tokens; the share of the peak of
matrix products that one training step of the shape of Nomic Embed v2 reaches, without recomputation (useful
operations: three times those of the forward pass); and encoding from token rows on the host to vectors on the
host, without tokenisation. All in bf16; texts of 32 to 256 tokens, as many of each length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from moembed.embedder import Embedder
from moembed.losses.balance import balance_loss
from moembed.losses.contrastive import info_nce
from moembed.model.spec import EncoderSpec
from moembed.packing import pack
from moembed.runs.bench import Options, Row, Timing, interleave, ratio, speed_row, time_row
from moembed.training.contrastive import gradcache
from moembed.training.optim import OptimConfig, adamw
from moembed.types import Batch, Encoded

from . import layers, models

LENGTHS = (32, 64, 128, 256)


@dataclass(frozen=True)
class Sizes:
    """What is measured. Smaller ones let a test run every line of this file on a CPU.

    Attributes:
        tokens: of a layer, and of what is encoded.
        trained: tokens of a training step, whose activations fit into the memory of one GPU.
        product: rows, columns and depth of the product that stands for the peak.
        spec: the model.
        warmup, rounds: of every contender, ``rounds`` per repeat.
    """

    tokens: int = 65_536
    trained: int = 32_768
    product: int = 8192
    spec: EncoderSpec = models.PUBLISHED
    warmup: int = 3
    rounds: int = 4


FULL = Sizes()
TARGETS = {
    "layer, forward": "<= 1.2",
    "layer, forward and backward": "<= 1.3",
    "training step, share of the peak": ">= 45",
    "encode": ">= 1000000",
}


def rows(options: Options) -> Iterator[Row]:
    if options.device != "cuda":
        for question, target in TARGETS.items():
            yield Row(question, "moembed", target=target, note="no GPU in this run")
        return
    yield from measured(options, FULL)


def measured(options: Options, sizes: Sizes) -> Iterator[Row]:
    yield from layer(options, sizes)
    yield from training(options, sizes)
    yield from encoding(options, sizes)


def timed(
    contenders: Mapping[str, Callable[[], object]], options: Options, sizes: Sizes
) -> dict[str, Timing]:
    """A call of a GPU's kernel returns before it is done: wait for each contender's last one."""

    def awaited(function: Callable[[], object]) -> None:
        function()
        if options.device == "cuda":
            torch.cuda.synchronize()

    waiting = {name: partial(awaited, function) for name, function in contenders.items()}
    return interleave(waiting, sizes.rounds * options.repeats, sizes.warmup)


def layer(options: Options, sizes: Sizes) -> Iterator[Row]:
    experts = layers.experts(8, torch.bfloat16, options.device)
    pair = layers.dense(torch.bfloat16, options.device)
    fed = layers.batches(sizes.tokens, torch.bfloat16, options.repeats, options.device)
    ours, theirs = layers.run(experts), partial(layers.plain, *pair)
    timings = {}
    with torch.inference_mode():
        forward = {"experts": layers.forward(ours, fed), "dense": layers.forward(theirs, fed)}
        timings["layer, forward"] = timed(forward, options, sizes)
    experts.train()
    backward = {
        "experts": layers.backward(ours, experts, fed),
        "dense": layers.backward(theirs, pair, fed),
    }
    timings["layer, forward and backward"] = timed(backward, options, sizes)
    for question, some in timings.items():
        yield time_row(question, some, "dense")
        yield time_row(question, some, "experts", "dense", TARGETS[question])


def training(options: Options, sizes: Sizes) -> Iterator[Row]:
    model = Embedder(models.published(sizes.spec)).to(options.device).train()
    optimiser = adamw(model, OptimConfig())
    lengths = spread(sizes.trained)
    batch = pack(token_rows(lengths, sizes.spec.embeddings.vocabulary)).to(options.device)
    chunks = gradcache.Chunks([batch], [torch.arange(len(lengths))], len(lengths))
    queries = len(lengths) // 2
    positive_Q = torch.arange(queries, device=options.device)

    def embed(chunk: Batch) -> Encoded:
        with torch.autocast(options.device, torch.bfloat16):
            return model(chunk)

    def loss(by_depth: dict[int, Tensor]) -> Tensor:
        (vector_BM,) = by_depth.values()
        return info_nce(vector_BM[:queries], vector_BM[queries:], positive_Q, temperature=0.05)

    def step() -> None:
        gradcache.backward(embed, chunks, loss, balance_loss)
        optimiser.step()
        optimiser.zero_grad()

    one = torch.randn(sizes.product, sizes.product, dtype=torch.bfloat16, device=options.device)
    timings = timed({"training step": step, "product": lambda: one @ one}, options, sizes)
    work = 3 * models.flops(model.encoder.spec, lengths)
    question = "training step, share of the peak"
    yield speed_row("peak", timings, "product", 2 * sizes.product**3 / 1e12, "TFLOP/s")
    share = 100 * work / (2 * sizes.product**3) * ratio(timings, "product", "training step")
    yield Row(question, "moembed", share, "%", timings["training step"].spread, target=TARGETS[question])
    yield speed_row("training", timings, "training step", sum(lengths), "tokens/s")


def encoding(options: Options, sizes: Sizes) -> Iterator[Row]:
    with TemporaryDirectory() as place:
        folder = models.saved(models.published(sizes.spec), Path(place) / "model")
        model = Embedder.from_pretrained(folder, dtype="bfloat16", device=options.device)
    rows = token_rows(spread(sizes.tokens), sizes.spec.embeddings.vocabulary)

    @torch.inference_mode()
    def encode() -> None:
        model(pack(rows).to(options.device)).vector_BM.cpu()

    timings = timed({"moembed": encode}, options, sizes)
    yield speed_row("encode", timings, "moembed", sum(map(len, rows)), "tokens/s", target=TARGETS["encode"])


def spread(tokens: int) -> list[int]:
    """Lengths of texts that have ``tokens`` tokens together, each length as often as the others."""
    return list(LENGTHS) * (tokens // sum(LENGTHS))


def token_rows(lengths: list[int], vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
