"""Texts in, vectors out, and what a model answers by the names that users of sentence-transformers know."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from moembed.encoding import Progress, Tag, View, as_texts, no_bar, role_prompt, truncate
from moembed.inference.keywords import AllKeywords, Keywords, one_of, read_keywords
from moembed.tokenizer import Tokenizer
from moembed.types import TruncationWarning, UserError, is_count

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

Texts = str | Iterable[str]


class Sentences:
    """``encode`` and the methods made of it, for a class that embeds lists of texts."""

    tokenizer: Tokenizer
    dim: int
    _prompt_mentioned = False

    @property
    @abstractmethod
    def device(self) -> str:
        """Where the model is: ``cpu``, ``cuda:0``, …"""

    @property
    @abstractmethod
    def _longest(self) -> int:
        """Tokens of the longest text that the encoder can read."""

    @abstractmethod
    def _embedded(
        self,
        texts: list[str],
        prefix: str,
        view: View,
        progress: Progress | None = None,
        tags: Sequence[int] | None = None,
        **limits: int | None,
    ) -> tuple[np.ndarray, int]:
        """The vectors, and how many texts were cut."""

    def tag_numbers(
        self, texts: list[str], *, role: str | None = None, prompt: str | None = None, tag: Tag | None = None
    ) -> list[int] | None:
        """The number of every text's tag; None, where nothing depends on tags, as here.

        Raises:
            UserError: a tag is given all the same.
        """
        if tag is not None:
            raise UserError("this model does not choose experts by tags: leave tag out")
        return None

    @overload
    def encode(
        self,
        texts: Texts | None = None,
        prompt_name: str | None = None,
        dim: int | None = None,
        batch_tokens: int | None = None,
        progress: Progress | None = None,
        *,
        prompt: str | None = None,
        convert_to_tensor: Literal[True],
        **keywords: Any,
    ) -> Tensor: ...

    @overload
    def encode(
        self,
        texts: Texts | None = None,
        prompt_name: str | None = None,
        dim: int | None = None,
        batch_tokens: int | None = None,
        progress: Progress | None = None,
        *,
        prompt: str | None = None,
        batch_size: int | None = None,
        convert_to_tensor: Literal[False] = False,
        **keywords: Unpack[Keywords],
    ) -> np.ndarray: ...

    def encode(
        self,
        texts: Texts | None = None,
        prompt_name: str | None = None,
        dim: int | None = None,
        batch_tokens: int | None = None,
        progress: Progress | None = None,
        *,
        prompt: str | None = None,
        batch_size: int | None = None,
        **keywords: Any,
    ) -> Any:
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
            keywords: ``tag``, and those of sentence-transformers: see `moembed.inference.keywords.Keywords`.

        Returns:
            float32 ``(len(texts), dim)``, rows of length 1. A row depends on its own text alone. A text
            without a single token, which only a tokenizer without special tokens can give, is a row of zeros.

        Warns:
            TruncationWarning: with the number of texts that were longer than the model reads.

        Raises:
            UserError: a table, a set, or anything that is no string among the texts; no such prompt; a tag
                that is not known, or none where the model needs one; a keyword that is not known, or whose
                wish cannot be met.
        """
        tag = keywords.pop("tag", None)
        wishes = read_keywords(keywords, self.device)
        texts = one_of("texts", texts, keywords, "sentences", "inputs")
        dim = one_of("dim", dim, keywords, "truncate_dim")
        if prompt is not None and prompt_name is not None:
            raise UserError("give prompt_name or prompt, not both")
        if prompt is None and prompt_name is None:
            self._mention_default_prompt()
        listed = [texts] if isinstance(texts, str) else as_texts(texts)
        prefix = self.tokenizer.prompt(prompt_name) if prompt is None else prompt
        tags = self.tag_numbers(listed, role=prompt_name, prompt=prefix, tag=tag)
        limits = {"batch_tokens": batch_tokens, "batch_size": batch_size}
        bar = no_bar
        if wishes.progress_bar and progress is None:
            from moembed.console import progress_bar as bar
        with bar("texts", len(listed)) as advance:
            array, truncated = self._embedded(
                listed, prefix, View(dim=dim), progress or advance, tags, **limits
            )
        if truncated:
            warnings.warn(
                f"{truncated} of {len(listed)} texts were cut at {self.tokenizer.max_length} tokens",
                TruncationWarning,
                stacklevel=2,
            )
        return wishes.result(array[0] if isinstance(texts, str) else array, self.device)

    def encode_query(
        self, texts: Texts | None = None, dim: int | None = None, **keywords: Unpack[AllKeywords]
    ) -> np.ndarray:
        """``encode`` with the model's ``query`` prompt, if it has one."""
        return self._encode_role("query", texts, dim, keywords)

    def encode_document(
        self, texts: Texts | None = None, dim: int | None = None, **keywords: Unpack[AllKeywords]
    ) -> np.ndarray:
        """``encode`` with the model's ``document`` (or ``passage``) prompt, if it has one."""
        return self._encode_role("document", texts, dim, keywords)

    def role_prompt(self, role: str) -> str | None:
        """The name of the prompt for a role, such as ``query``, else of the default prompt, else None."""
        return role_prompt(role, self.tokenizer.prompts, self.tokenizer.default_prompt)

    def role_tag(self, role: str) -> str | None:
        """The tag of texts of a role, of a model whose tags are roles."""
        return None

    def role_prefix(self, role: str | None) -> str:
        """The text that is put in front of texts of a role; None: of texts without one."""
        return self.tokenizer.prompt(self.role_prompt(role)) if role is not None else ""

    def prefix(self, role: str | None, prompt: str | None) -> str:
        """The text that is put in front: ``prompt``, or where it is None that of the role."""
        return self.role_prefix(role) if prompt is None else prompt

    def num_tokens(
        self, texts: Iterable[str], *, role: str | None = None, prompt: str | None = None
    ) -> list[int]:
        """Tokens of every text before any cut, prompt and special ones included."""
        rows = self.tokenizer.whole_rows(as_texts(texts), prompt=self.prefix(role, prompt))
        return [len(row) for row in rows]

    def _encode_role(
        self, role: str, texts: Texts | None, dim: int | None, keywords: AllKeywords
    ) -> np.ndarray:
        """A prompt among the keywords takes the place of that of the role, and so does a tag."""
        given: dict[str, Any] = dict(keywords)
        if given.get("tag") is None:
            given["tag"] = self.role_tag(role)
        if given.get("prompt") is None and given.get("prompt_name") is None:
            given["prompt"] = self.role_prefix(role)
        array: np.ndarray = self.encode(texts, dim=dim, **given)
        return array

    def similarity(self, one: np.ndarray | Tensor, other: np.ndarray | Tensor) -> np.ndarray:
        """Cosines of all vectors of ``one`` with all of ``other``: ``(N, K)``; a single vector is one row.

        Raises:
            UserError: vectors of other widths.
        """
        one_NM, other_KM = _unit_rows(one), _unit_rows(other)
        if one_NM.shape[1] != other_KM.shape[1]:
            raise UserError(f"vectors {one_NM.shape} and {other_KM.shape} are not of one width")
        return one_NM @ other_KM.T

    def similarity_pairwise(self, one: np.ndarray | Tensor, other: np.ndarray | Tensor) -> np.ndarray:
        """Cosines of the vectors in the same place: ``(N,)``.

        Raises:
            UserError: not as many of the one as of the other.
        """
        one_NM, other_NM = _unit_rows(one), _unit_rows(other)
        if one_NM.shape != other_NM.shape:
            raise UserError(f"vectors {one_NM.shape} and {other_NM.shape} are not pairs of one width")
        cosine_N: np.ndarray = (one_NM * other_NM).sum(axis=1)
        return cosine_N

    @property
    def prompts(self) -> dict[str, str]:
        """The model's prompts by name."""
        return self.tokenizer.prompts

    @property
    def default_prompt_name(self) -> str | None:
        """The prompt of a role that has none of its own."""
        return self.tokenizer.default_prompt

    @property
    def max_length(self) -> int:
        """Tokens read of a text, special ones and prompt included."""
        return self.tokenizer.max_length

    @property
    def max_seq_length(self) -> int:
        """``max_length`` by its name in sentence-transformers; set it to read less of a text, or more."""
        return self.tokenizer.max_length

    @max_seq_length.setter
    def max_seq_length(self, tokens: int) -> None:
        shortest = max(self.tokenizer.num_special_tokens, 1)
        if not (is_count(tokens) and shortest <= tokens <= self._longest):
            raise UserError(
                f"max_seq_length {tokens!r} is not within {shortest}..{self._longest}, what the model reads"
            )
        self.tokenizer.max_length = tokens

    def get_embedding_dimension(self) -> int:
        """``dim`` by its name in sentence-transformers."""
        return self.dim

    def get_sentence_embedding_dimension(self) -> int:
        """``dim`` by its older name in sentence-transformers."""
        return self.dim

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


def _unit_rows(vectors: np.ndarray | Tensor) -> np.ndarray:
    """Vectors as rows of length 1; zeros stay. Tensors of any device and dtype are taken."""
    array = vectors if isinstance(vectors, np.ndarray) else _numpy(vectors)
    rows_NM = np.atleast_2d(array)
    return truncate(rows_NM, rows_NM.shape[1])


def _numpy(vectors: Any) -> np.ndarray:
    if isinstance(vectors, list) and vectors and hasattr(vectors[0], "detach"):
        return np.stack([_numpy(vector) for vector in vectors])
    return vectors.detach().cpu().float().numpy() if hasattr(vectors, "detach") else np.asarray(vectors)
