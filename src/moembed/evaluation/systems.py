"""Text encoders before another one: they count, keep vectors on disk or in memory, or make them smaller."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from moembed.encoding import (
    FULL,
    Progress,
    TextEncoder,
    TokenEncoder,
    TokenVectors,
    Vectors,
    View,
    as_texts,
    truncate,
)
from moembed.search.codecs import Codec, fit_codec
from moembed.search.vectors import VectorCache
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.client.model import Client
    from moembed.embedder import Embedder


Found = TypeVar("Found", Vectors, TokenVectors)


class WrappedEncoder:
    """A text encoder that asks another one, ``encoder``, for everything."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @property
    def max_length(self) -> int | None:
        return self.encoder.max_length

    @property
    def per_token(self) -> bool:
        """Whether the model makes a vector of every token: see ``encode_tokens``."""
        return bool(getattr(self.encoder, "per_token", False))

    def prefix(self, role: str | None, prompt: str | None) -> str | None:
        """The prompt that ``encoder`` is asked with."""
        return prompt

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        return self.encoder.space(role=role, prompt=self.prefix(role, prompt), view=view)

    def encode_tokens(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        progress: Progress | None = None,
    ) -> TokenVectors:
        """The vectors of all tokens, where the model is one of ``per_token``."""
        assert isinstance(self.encoder, TokenEncoder)
        return self.encoder.encode_tokens(texts, role=role, prompt=prompt, progress=progress)

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        prefix = self.prefix(role, prompt)
        return self.encoder.vectors(texts, role=role, prompt=prefix, view=view, progress=progress)


class PromptedCopies(WrappedEncoder):
    """Copies of a model in other processes, asked with the prompts that it has here.

    They have those of its folder; those of the language of a task are known in this process alone.
    """

    def __init__(self, model: Embedder, copies: TextEncoder) -> None:
        super().__init__(copies)
        self.model = model

    def prefix(self, role: str | None, prompt: str | None) -> str | None:
        return self.model.prefix(role, prompt)


class MeasuredEncoder(WrappedEncoder):
    """A text encoder that counts what it computes.

    Attributes:
        texts, seconds: how many were computed, and how long that took.
        truncated: texts asked for that were longer than the model reads.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__(encoder)
        self.texts, self.truncated, self.seconds = 0, 0, 0.0

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
        return self._counted(found, len(listed), start)

    def encode_tokens(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        progress: Progress | None = None,
    ) -> TokenVectors:
        listed, start = as_texts(texts), time.perf_counter()
        found = super().encode_tokens(listed, role=role, prompt=prompt, progress=progress)
        return self._counted(found, len(listed), start)

    def _counted(self, found: Found, texts: int, start: float) -> Found:
        self.seconds += time.perf_counter() - start
        self.texts += texts
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

    def __init__(self, model: Embedder | Client, folder: Path, encoder: TextEncoder | None = None) -> None:
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
        facts = (space, self.model.dtype, self.model.max_length, *self._other_end)
        name = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
        known = VectorCache(self.folder, name, view.dim or self.model.dim)
        computed, cut = self.texts, self.truncated

        def compute(some: list[str]) -> np.ndarray:
            options = {"role": role, "prompt": prompt}
            return MeasuredEncoder.vectors(self, some, **options, view=view, progress=progress).array

        array = known.get_or_encode(listed, compute)
        if self.model.max_length is not None:
            lengths = self.model.num_tokens(listed, role=role, prompt=prompt)
            self.truncated = cut + sum(length > self.model.max_length for length in lengths)
        if progress:
            progress(len(listed) - (self.texts - computed))
        return Vectors(array, self.truncated - cut, space)

    @property
    def _other_end(self) -> tuple[str, ...]:
        """What is told of a model that reads the end of a long text, not its beginning."""
        tokenizer = getattr(self.model, "tokenizer", None)  # of a model on a server there is none
        return ("left",) if tokenizer and tokenizer.truncation_side == "left" else ()


class KeepsDocuments(MeasuredEncoder):
    """A measured encoder that keeps its last vectors of documents; for the same texts it gives them again."""

    documents: np.ndarray
    _last: tuple[tuple[list[str], str | None, View], Vectors] | None = None

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        key = (as_texts(texts), prompt, view)
        if role == "document" and self._last and self._last[0] == key:
            return self._last[1]
        found = super().vectors(key[0], role=role, prompt=prompt, view=view, progress=progress)
        if role == "document":
            self._last, self.documents = (key, found), found.array
        return found


class CachedVectors(WrappedEncoder):
    """Vectors that are made once, for one task; ``smaller`` gives them as stored in fewer bytes."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__(encoder)
        self.known: dict[tuple[str | None, str | None, View, tuple[str, ...]], Vectors] = {}

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        key = (role, prompt, view, tuple(as_texts(texts)))
        if key not in self.known:
            self.known[key] = super().vectors(key[3], role=role, prompt=prompt, view=view, progress=progress)
        return self.known[key]

    def smaller(self, codec: str, dim: int) -> CodedEncoder:
        """The vectors known so far, with ``dim`` coordinates, stored in ``codec``."""
        documents = next(
            (found.array for (role, *_), found in self.known.items() if role == "document"), None
        )
        return CodedEncoder(self, codec, dim, documents)


class CodedEncoder(WrappedEncoder):
    """Vectors as a search among stored ones sees them, see `moembed.search.codecs`.

    Args:
        documents: what is stored, to which codecs are fitted. None: there are no documents, as in pairs of
            sentences, and every text is stored itself.
    """

    def __init__(self, known: CachedVectors, codec: str, dim: int, documents: np.ndarray | None) -> None:
        super().__init__(known)
        self.codec, self.size, self.documents = codec, dim, documents

    @property
    def dim(self) -> int:
        return self.size

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        return f"{super().space(role=role, prompt=prompt, view=View(dim=self.size))}-{self.codec}"

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        if view != FULL:
            raise UserError("stored vectors have one size: leave the view out")
        found = super().vectors(texts, role=role, prompt=prompt, progress=progress)
        array = truncate(found.array, self.size)
        if role == "query" and self.documents is not None:
            seen = self.fitted.query(array)
        else:
            seen = self.fitted.decode(self.fitted.encode(array))
        # a text without a token has no direction, and scores 0 as with floats, whatever its code says
        has_direction_N1 = array.any(axis=1, keepdims=True)
        array = np.where(has_direction_N1, seen, np.float32(0))
        return Vectors(array, found.truncated, self.space(role=role, prompt=prompt))

    @property
    def bytes_per_vector(self) -> int:
        """Of a stored vector."""
        return self.fitted.bytes_per_vector

    @cached_property
    def fitted(self) -> Codec:
        """Calibrated once, on what is stored and nothing else."""
        stored = self.documents
        if stored is None:
            assert isinstance(self.encoder, CachedVectors)
            stored = np.concatenate([found.array for found in self.encoder.known.values()])
        return fit_codec(self.codec, truncate(stored, self.size))
