"""A model as evaluation sees it: texts and a role -> vectors, counted, kept, and seen smaller."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from moembed.evaluation.tasks import Encode
from moembed.search.codecs import view
from moembed.search.vectors import VectorCache

if TYPE_CHECKING:
    from moembed.embedder import Embedder

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
        self.truncated += self.model.tokenizer.rows(texts, prompt=self.model.tokenizer.prompt(prompt))[1]
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

    def __init__(self, encoder: Encode) -> None:
        self.encoder = encoder
        self.known: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}

    def __call__(self, texts: list[str], role: str) -> np.ndarray:
        vectors = self.known[role, tuple(texts)] = self.encoder(texts, role)
        return vectors

    def seen_as(self, codec: str, dim: int) -> tuple[Encode, int]:
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
