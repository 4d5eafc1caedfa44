"""What the threads of a batcher do with a model: the vectors of rows that share a batch, and the warm-up."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from itertools import cycle, islice

import numpy as np
import torch

from moembed.embedder import Embedder
from moembed.encoding import View
from moembed.inference.layers import PackedMoE
from moembed.serve.batching.batcher import Request
from moembed.serve.batching.limits import BatchObserver

_WARM = (8, 24, 64, 160)  # tokens of the texts that the first batches are made of


class Computation:
    """Rows to vectors, for a `Batcher`; ``observer`` is told how many tokens each expert was given."""

    def __init__(self, embedder: Embedder, observer: BatchObserver) -> None:
        self.embedder, self.observer = embedder, observer
        self._seen = threading.local()  # of each lane: how many tokens its batch gave to which expert

    def known(self, prompt_tokens: int) -> int | None:
        """What ``Embedder.embed`` must know of rows that begin with a prompt of so many tokens."""
        return None if self.embedder.pooling.config.include_prompt else prompt_tokens

    def compute(
        self,
        rows: Sequence[Sequence[int]],
        prompts: Sequence[int | None],
        tags: Sequence[int | None],
        layers: Hashable,
    ) -> np.ndarray:
        """Vectors of rows that share a batch, in all coordinates."""
        assert layers is None or isinstance(layers, int)
        known = [count for count in prompts if count is not None]
        numbers = [number for number in tags if number is not None]
        counts: dict[int, Sequence[int]] = {}
        self._seen.counts = counts
        vector_NM = self.embedder.embed(
            rows,
            View(layers=layers),
            batch_tokens=max(1, sum(map(len, rows))),
            prompt_tokens=known if len(known) == len(rows) else None,
            tags=numbers if len(numbers) == len(rows) else None,
        )
        del self._seen.counts
        if counts:
            self.observer.expert_load(counts)
        return vector_NM

    def warm_up(self, threads: int) -> None:
        """What a lane does first. A model of one size is computed by kernels that are built once."""
        if self.embedder.device == "cpu":
            torch.set_num_threads(threads)
        some = self.some_request()
        for count in (1, len(some.rows)):
            rows, tags = some.rows[:count], None if some.tags is None else some.tags[:count]
            self.embedder.embed(rows, prompt_tokens=some.prompt_tokens, tags=tags)

    def some_request(self) -> Request:
        """Token ids of texts that nobody has written, each of the next tag that the model knows."""
        generator = np.random.default_rng(0)
        vocab, longest = self.embedder.encoder.spec.vocab_size, self.embedder.max_length
        rows = [generator.integers(vocab, size=min(length, longest)).tolist() for length in _WARM]
        known = self.embedder.tags
        tags = None if known is None else list(islice(cycle(range(len(known.names))), len(rows)))
        return Request("", rows, self.known(0), tags)

    def count_experts(self) -> None:
        """Let the layers with experts say whom they gave how many tokens; only those of packed models do."""
        for module in self.embedder.engine.encoder(self.embedder.encoder).modules():
            if isinstance(module, PackedMoE):
                module.on_counts = self._counted

    def _counted(self, layer: int, counts: list[int]) -> None:
        if hasattr(self._seen, "counts"):  # a batch of ours, and nobody else's use of the model
            self._seen.counts[layer] = counts
