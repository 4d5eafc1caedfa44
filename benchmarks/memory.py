"""Does memory stay the same when the batch, or the number of texts, grows?

The peak of a process's resident memory, all of it: libraries, weights, gradients and optimiser. Processes are
fresh. The training step is that of `moembed train` with all-MiniLM-L6-v2 on short texts; encoding is that of
`Embedder.encode` with its first two layers, for their number changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.folder.read import read_folder
from moembed.runs.bench import Options, Row, alone, resident_memory
from moembed.training.contrastive.settings import ContrastiveConfig
from moembed.training.contrastive.task import Mixture
from moembed.training.contrastive.train import train_contrastive
from moembed.types import Pair

from . import models, texts

SMALL, LARGE, QUICK = 256, 16_384, 4_096  # pairs
LENGTH = 8  # tokens per text, so that the large batch ends
CHUNK = 2048  # tokens computed at a time
BUDGETS = (4096, 16_384)


def rows(options: Options) -> Iterator[Row]:
    large = QUICK if options.quick else LARGE
    peaks = {size: alone(step, size, options.threads).peak_bytes / 2**20 for size in (SMALL, large)}
    yield Row("training step, peak", f"{SMALL:,} pairs", peaks[SMALL], "MiB")
    grown, few = peaks[large] / peaks[SMALL], f"{SMALL:,} pairs"
    yield Row("training step, peak", f"{large:,} pairs", peaks[large], "MiB", None, grown, few, "<= 1.3")

    some = texts.sample(1000 if options.quick else 4000)
    for budget in BUDGETS:
        found = alone(encode, some, budget, options.threads)
        above = (found.peak_bytes - found.result) / 2**20
        question = f"encode {len(some):,} texts, peak above the loaded model"
        note = f"{above * 1024 / budget:.1f} KiB per token of the budget"
        yield Row(question, f"batch_tokens={budget:,}", above, "MiB", note=note)


def step(size: int, threads: int) -> None:
    torch.set_num_threads(threads)
    some = [Pair(f"{number} question", f"answer {number}") for number in range(size)]
    config = ContrastiveConfig(
        steps=1, batch_size=size, chunk_tokens=CHUNK, query_length=LENGTH, document_length=LENGTH
    )
    model = Embedder(read_folder(models.minilm()))
    with TemporaryDirectory() as place:
        train_contrastive(config, model, Mixture([Source.from_pairs("pairs", some)]), Path(place) / "run")


def encode(some: list[str], budget: int, threads: int) -> int:
    """Encode all texts; resident memory before it, the first text being encoded."""
    torch.set_num_threads(threads)
    model = Embedder(models.shallow_minilm(2)).eval()
    model.encode(texts.QUERY)
    before = resident_memory()
    model.encode(some, batch_tokens=budget)
    return before
