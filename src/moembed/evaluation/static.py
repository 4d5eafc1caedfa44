"""A floor under every evaluation: what the word vectors of a model are worth without its layers."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from moembed.embedder import Embedder

_WINDOW = 4096  # texts that are tokens at one time


class StaticEncoder:
    """A floor: what the word vectors of a model are worth without any of its layers.

    v(text) = Σ_t log(1 + rank(t)) · (E[t] − mean E), normalised; E is the table of token embeddings, rank(t)
    the token's place in it, for vocabularies are ordered by frequency and frequent tokens say little.
    Source of the weight: Zipf's law, as in model2vec (Tulkens and van Dongen, 2024).
    """

    def __init__(self, model: Embedder) -> None:
        self.tokenizer, self.dim = model.tokenizer, model.dim
        self.texts, self.truncated, self.seconds = 0, 0, 0.0
        self.progress: Callable[[int], object] | None = None
        table_VD = model.parts().state["word.weight"].float().cpu()
        rank_V = torch.arange(len(table_VD), dtype=torch.float32)
        rank_V[self.tokenizer.rows([""])[0][0]] = 0  # the special tokens around a text weigh nothing
        self.table_VD = rank_V.log1p()[:, None] * (table_VD - table_VD.mean(dim=0))

    def __call__(self, texts: list[str], role: str) -> np.ndarray:
        start = time.perf_counter()
        parts = [texts[place : place + _WINDOW] for place in range(0, len(texts), _WINDOW)]
        vectors = np.concatenate([self._embed(part) for part in parts])
        self.seconds += time.perf_counter() - start
        self.texts += len(texts)
        return vectors

    def _embed(self, texts: list[str]) -> np.ndarray:
        rows, truncated = self.tokenizer.rows(texts)
        self.truncated += truncated
        if self.progress:
            self.progress(len(texts))
        token_T = torch.from_numpy(np.concatenate(rows, dtype=np.int64))
        start_B = torch.tensor([0, *accumulate(len(row) for row in rows)][:-1])
        sum_BD = F.embedding_bag(token_T, self.table_VD, start_B, mode="sum")
        return F.normalize(sum_BD, dim=-1).numpy()  # a text without a token stays zero
