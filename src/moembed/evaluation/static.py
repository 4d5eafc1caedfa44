"""A floor under every evaluation: what the word vectors of a model are worth without its layers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from moembed.encoding import FULL, Progress, Vectors, View, as_texts, truncate
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.embedder import Embedder

_WINDOW = 4096  # texts that are tokens at one time


class StaticEncoder:
    """A floor: what the word vectors of a model are worth without any of its layers.

    v(text) = Σ_t log(1 + rank(t)) · (E[t] − mean E), normalised; E is the table of token embeddings, rank(t)
    the token's place in it, for vocabularies are ordered by frequency and frequent tokens say little. Roles
    have no prompts here: a bag of words would only be made alike by them.
    Source of the weight: Zipf's law, as in model2vec (Tulkens and van Dongen, 2024).
    """

    def __init__(self, model: Embedder) -> None:
        self.tokenizer = model.tokenizer
        table_VD = model.encoder.word.weight.detach().float().cpu()
        rank_V = torch.arange(len(table_VD), dtype=torch.float32)
        rank_V[self.tokenizer.rows([""])[0][0]] = 0  # the special tokens around a text weigh nothing
        self.table_VD = rank_V.log1p()[:, None] * (table_VD - table_VD.mean(dim=0))

    @property
    def dim(self) -> int:
        return self.table_VD.shape[1]

    @property
    def max_length(self) -> int | None:
        return self.tokenizer.max_length

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        """See `moembed.encoding.TextEncoder`."""
        digest = self._weights.copy()
        facts = (prompt or "", view.dim or self.dim, self.tokenizer.backend.to_str())
        digest.update(repr(facts).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def _weights(self) -> Any:
        """A hash of the word vectors that goes on with whatever else the space depends on."""
        return hashlib.sha256(self.table_VD.numpy().data)

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        """See `moembed.encoding.TextEncoder`."""
        if view.layers is not None or view.experts is not None:
            raise UserError("word vectors have no layers and no experts to view: leave them out")
        listed, truncated = as_texts(texts), 0
        parts = [np.zeros((0, self.dim), dtype=np.float32)]
        for start in range(0, len(listed), _WINDOW):
            rows, cut = self.tokenizer.rows(listed[start : start + _WINDOW], prompt=prompt or "")
            parts.append(self._embed(rows))
            truncated += cut
            if progress:
                progress(len(rows))
        array = truncate(np.concatenate(parts), view.dim)
        return Vectors(array, truncated, self.space(prompt=prompt, view=view))

    def _embed(self, rows: list[list[int]]) -> np.ndarray:
        token_T = torch.from_numpy(np.fromiter(chain.from_iterable(rows), dtype=np.int64))
        start_B = torch.tensor([0, *accumulate(len(row) for row in rows)][:-1])
        sum_BD = F.embedding_bag(token_T, self.table_VD, start_B, mode="sum")
        return F.normalize(sum_BD, dim=-1).numpy()  # a text without a token stays zero
