"""Texts to vectors by the names that users of sentence-transformers know."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable

import numpy as np

from moembed.encoding import Progress, View, as_texts, truncate
from moembed.tokenizer import Tokenizer
from moembed.types import TruncationWarning, UserError


class Sentences:
    """``encode`` and the methods made of it, for a class that embeds lists of texts."""

    tokenizer: Tokenizer
    _prompt_mentioned = False

    @abstractmethod
    def role_prefix(self, role: str | None) -> str:
        """The text that is put in front of texts of a role."""

    @abstractmethod
    def _embedded(
        self,
        texts: list[str],
        prefix: str,
        view: View,
        progress: Progress | None = None,
        **limits: int | None,
    ) -> tuple[np.ndarray, int]:
        """The vectors, and how many texts were cut."""

    def encode(
        self,
        texts: str | Iterable[str],
        prompt_name: str | None = None,
        dim: int | None = None,
        batch_tokens: int | None = None,
        progress: Progress | None = None,
        *,
        prompt: str | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Embed texts.

        Args:
            texts: strings in an order: a list, a generator, a column; ``""`` is legal. A single string gives
                a single vector.
            prompt_name: put the model's prompt of this name in front; None adds none.
            dim: keep the first ``dim`` coordinates, then normalise again (Matryoshka).
            batch_tokens: most tokens computed at a time; bounds the memory. Default: by device.
            progress: called with the number of texts finished since the last call.
            prompt: put this text in front, instead of a prompt of the model.
            batch_size: most texts computed at a time; vectors do not depend on it.

        Returns:
            float32 ``(len(texts), dim)``, rows of length 1. A row depends on its own text alone. A text
            without a single token, which only a tokenizer without special tokens can give, is a row of zeros.

        Warns:
            TruncationWarning: with the number of texts that were longer than the model reads.

        Raises:
            UserError: a table, a set, or anything that is no string among the texts; no such prompt.
        """
        if prompt is not None and prompt_name is not None:
            raise UserError("give prompt_name or prompt, not both")
        if prompt is None and prompt_name is None:
            self._mention_default_prompt()
        listed = [texts] if isinstance(texts, str) else as_texts(texts)
        prefix = self.tokenizer.prompt(prompt_name) if prompt is None else prompt
        limits = {"batch_tokens": batch_tokens, "batch_size": batch_size}
        array, truncated = self._embedded(listed, prefix, View(dim=dim), progress, **limits)
        if truncated:
            warnings.warn(
                f"{truncated} of {len(listed)} texts were cut at {self.tokenizer.max_length} tokens",
                TruncationWarning,
                stacklevel=2,
            )
        return array[0] if isinstance(texts, str) else array

    def encode_query(self, texts: str | Iterable[str], dim: int | None = None) -> np.ndarray:
        """``encode`` with the model's ``query`` prompt, if it has one."""
        return self.encode(texts, dim=dim, prompt=self.role_prefix("query"))

    def encode_document(self, texts: str | Iterable[str], dim: int | None = None) -> np.ndarray:
        """``encode`` with the model's ``document`` (or ``passage``) prompt, if it has one."""
        return self.encode(texts, dim=dim, prompt=self.role_prefix("document"))

    def similarity(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Cosines of all vectors of ``one`` with all of ``other``: ``(N, K)``; a single vector is one row."""
        one_NM, other_KM = np.atleast_2d(one), np.atleast_2d(other)
        return truncate(one_NM, one_NM.shape[1]) @ truncate(other_KM, other_KM.shape[1]).T

    def _mention_default_prompt(self) -> None:
        """Say once that this model has a prompt which ``encode(texts)`` does not add."""
        name = self.tokenizer.default_prompt
        if name is None or self._prompt_mentioned or not self.tokenizer.prompt(name):
            return
        self._prompt_mentioned = True
        warnings.warn(
            f"this model has a default prompt, {name!r}, which encode(texts) does not put in front: pass "
            f"prompt_name={name!r} for it, or prompt='' for none",
            stacklevel=3,
        )
