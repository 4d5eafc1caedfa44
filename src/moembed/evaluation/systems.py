"""Wrappers of a text encoder: one counts and keeps vectors on disk, one remembers those of a task."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moembed.encoding import FULL, Progress, TextEncoder, Vectors, View, as_texts
from moembed.evaluation.tasks import Encode
from moembed.search.codecs import as_searched
from moembed.search.vectors import VectorCache

if TYPE_CHECKING:
    from moembed.embedder import Embedder


class MeasuredEncoder:
    """A text encoder that counts what it computes; as a function of texts and role it gives the array alone.

    Args:
        encoder: who computes.

    Attributes:
        texts, seconds: how many were computed, and how long that took.
        truncated: texts asked for that were longer than the model reads.
        progress: what the function reports to.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.texts, self.truncated, self.seconds = 0, 0, 0.0
        self.progress: Progress | None = None

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @property
    def max_length(self) -> int | None:
        return self.encoder.max_length

    def __call__(self, texts: list[str], role: str) -> np.ndarray:
        return self.vectors(texts, role=role, progress=self.progress).array

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        return self.encoder.space(role=role, prompt=prompt, view=view)

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        listed, start = as_texts(texts), time.perf_counter()
        found = self.encoder.vectors(listed, role=role, prompt=prompt, view=view, progress=progress)
        self.seconds += time.perf_counter() - start
        self.texts += len(listed)
        self.truncated += found.truncated
        return found


class CachedEncoder(MeasuredEncoder):
    """A measured encoder before which a folder keeps all vectors by the hash of their text.

    What differs by rounding, or by where texts are cut, is kept apart although its space is the same. Texts
    found in the folder count as truncated, and not as computed.

    Args:
        model: gives tokens, space and precision; default for ``encoder``.
        folder: gets a sub-folder for every space.
    """

    def __init__(self, model: Embedder, folder: Path, encoder: TextEncoder | None = None) -> None:
        super().__init__(encoder or model)
        self.model, self.folder = model, folder

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        listed = as_texts(texts)
        space = self.model.space(role=role, prompt=prompt, view=view)
        facts = (space, self.model.dtype, self.model.max_length)
        name = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
        known = VectorCache(self.folder, name, view.dim or self.model.dim)
        computed, cut = self.texts, self.truncated

        def compute(some: list[str]) -> np.ndarray:
            options = {"role": role, "prompt": prompt}
            return MeasuredEncoder.vectors(self, some, **options, view=view, progress=progress).array

        array = known.get_or_encode(listed, compute)
        self.truncated = cut + self.model.rows(listed, role=role, prompt=prompt)[1]
        if progress:
            progress(len(listed) - (self.texts - computed))
        return Vectors(array, self.truncated - cut, space)


class CachedVectors:
    """Vectors that were made once, for one task, and what a search among smaller ones sees of them."""

    def __init__(self, encode: Encode) -> None:
        self.encode = encode
        self.known: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}

    def __call__(self, texts: list[str], role: str) -> np.ndarray:
        key = (role, tuple(texts))
        if key not in self.known:
            self.known[key] = self.encode(texts, role)
        return self.known[key]

    def seen_as(self, codec: str, dim: int) -> tuple[Encode, int]:
        """A function of the texts known, and the bytes of a stored vector; see `moembed.search.codecs`.

        What has no documents, such as pairs of sentences, is stored itself.
        """
        documents = next((vectors for (role, _), vectors in self.known.items() if role == "document"), None)

        def encode(texts: list[str], role: str) -> np.ndarray:
            vectors = self.known[role, tuple(texts)]
            if role == "query" and documents is not None:
                return as_searched(vectors, documents, codec, dim).query_QM
            return as_searched(vectors[:0], vectors, codec, dim).document_NM

        some = next(iter(self.known.values()))
        return encode, as_searched(some[:0], some, codec, dim).bytes_per_vector
