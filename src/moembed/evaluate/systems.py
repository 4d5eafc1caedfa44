"""What is evaluated: a model as evaluation sees it, its vectors made smaller, and the floor of its words."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from moembed.search.codecs import view
from moembed.search.vectors import VectorCache

if TYPE_CHECKING:
    from moembed.model.embedder import Embedder

_WINDOW = 4096  # texts whose word vectors are held at one time

Advance = Callable[[int], object]


class EncodeCounted(Protocol):
    """``Embedder.encode_counted``, or that of its replicas."""

    def __call__(
        self, texts: list[str], prompt_name: str | None, *, progress: Advance | None
    ) -> tuple[np.ndarray, int]: ...


class ModelEncoder:
    """Texts and what they are embedded for -> vectors, with the prompt the model has for it.

    Args:
        model: gives prompts, tokens and the space.
        encode: who computes; default: the model itself.
        cache: a folder where vectors are kept by the hash of their text, a sub-folder for every space.

    Attributes:
        texts, seconds: how many were computed (and not found in the cache), and how long that took.
        truncated: texts asked for that were longer than the model reads, found in the cache or not.
    """

    def __init__(
        self, model: Embedder, encode: EncodeCounted | None = None, cache: Path | None = None
    ) -> None:
        self.model, self.cache = model, cache
        self.encode: EncodeCounted = encode or model.encode_counted
        self.texts, self.truncated, self.seconds = 0, 0, 0.0
        self.progress: Advance | None = None
        self._spaces: dict[str | None, str] = {}

    @property
    def dim(self) -> int:
        return self.model.dim

    def __call__(self, texts: list[str], role: str) -> np.ndarray:
        prompt = self.model.role_prompt(role)
        if self.cache is None:
            vectors, truncated = self._compute(texts, prompt)
            self.truncated += truncated
            return vectors
        known = VectorCache(self.cache, self._space(prompt), self.model.dim)
        before = self.texts
        vectors = known.get_or_encode(texts, lambda some: self._compute(some, prompt)[0])
        self.truncated += self.model.tokenizer.rows(texts, prompt)[1]
        if self.progress:
            self.progress(len(texts) - (self.texts - before))
        return vectors

    def _compute(self, texts: list[str], prompt: str | None) -> tuple[np.ndarray, int]:
        start = time.perf_counter()
        vectors, truncated = self.encode(texts, prompt, progress=self.progress)
        self.seconds += time.perf_counter() - start
        self.texts += len(texts)
        return vectors, truncated

    def _space(self, prompt: str | None) -> str:
        """Finer than ``space_id``: what differs by rounding or by where texts are cut is evaluated anew."""
        if prompt not in self._spaces:
            model = self.model
            facts = (model.space_id(prompt), model.encoder.word.weight.dtype, model.tokenizer.max_length)
            self._spaces[prompt] = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
        return self._spaces[prompt]


class Remembered:
    """Vectors that were made once, for one task, and what a search among smaller ones sees of them."""

    def __init__(self, encoder: ModelEncoder | StaticEncoder) -> None:
        self.encoder = encoder
        self.known: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}

    def __call__(self, texts: list[str], role: str) -> np.ndarray:
        vectors = self.known[role, tuple(texts)] = self.encoder(texts, role)
        return vectors

    def seen_as(self, codec: str, dim: int) -> tuple[Callable[[list[str], str], np.ndarray], int]:
        """An encoder of the texts known, and the bytes of a stored vector; see `moembed.search.codecs`.

        What has no documents, such as pairs of sentences, is stored itself.
        """
        documents = next((vectors for (role, _), vectors in self.known.items() if role == "document"), None)

        def encode(texts: list[str], role: str) -> np.ndarray:
            vectors = self.known[role, tuple(texts)]
            if role == "query" and documents is not None:
                return view(vectors, documents, codec, dim).query_QM
            return view(vectors[:0], vectors, codec, dim).document_NM

        some = next(iter(self.known.values()))
        return encode, view(some[:0], some, codec, dim).bytes_per_vector


class StaticEncoder:
    """A floor: what the word vectors of a model are worth without any of its layers.

    v(text) = Σ_t log(1 + rank(t)) · (E[t] − mean E), normalised; E is the table of token embeddings, rank(t)
    the token's place in it, for vocabularies are ordered by frequency and frequent tokens say little.
    Source of the weight: Zipf's law, as in model2vec (Tulkens and van Dongen, 2024).
    """

    def __init__(self, model: Embedder) -> None:
        self.tokenizer, self.dim = model.tokenizer, model.dim
        self.texts, self.truncated, self.seconds = 0, 0, 0.0
        self.progress: Advance | None = None
        table_VD = model.parts().state["word.weight"].float().numpy()
        rank_V = np.arange(len(table_VD), dtype=np.float32)
        rank_V[self.tokenizer.rows([""])[0][0]] = 0  # the special tokens around a text weigh nothing
        self.table_VD = np.log1p(rank_V)[:, None] * (table_VD - table_VD.mean(axis=0))

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
        start_B = [0, *accumulate(len(row) for row in rows)][:-1]
        sum_BD = np.add.reduceat(self.table_VD[np.concatenate(rows)], start_B, axis=0)
        norm_B = np.linalg.norm(sum_BD, axis=1, keepdims=True)
        return sum_BD / np.maximum(norm_B, np.finfo(np.float32).tiny)  # a text without a token stays zero
