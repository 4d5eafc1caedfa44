"""One seam from text to vector: whatever makes vectors of texts is a ``TextEncoder``.

The Embedder is one, and so are static word vectors, replicas in other processes, a model of another library
and a cache before any of them. Evaluation, mining, stress tests, indexing and training ask no more than this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from moembed.types import UserError

Progress = Callable[[int], object]  # called with the number of texts finished since the last call


@dataclass(frozen=True, slots=True)
class View:
    """A part of a model that is a model itself: its first ``layers``, ``dim`` coordinates, ``experts``.

    None keeps all there are. Equal views are equal keys.
    """

    layers: int | None = None
    dim: int | None = None
    experts: int | None = None


FULL = View()


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of texts, in their order.

    Attributes:
        array: float32 ``(N, M)``, rows of length 1.
        truncated: texts that were longer than the model reads.
        space: name of the space they live in: equal names, comparable vectors.
    """

    array: np.ndarray
    truncated: int
    space: str


class TextEncoder(Protocol):
    """Texts -> vectors. Safe to call from several threads at once."""

    @property
    def dim(self) -> int:
        """Width of the full vector."""

    @property
    def max_length(self) -> int | None:
        """Tokens read of a text, special ones and prompt included; None: there is no limit."""

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        """The ``Vectors.space`` that ``vectors`` would give."""

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        """Embed texts.

        Args:
            role: what they are embedded for: ``query``, ``document``, … The model's prompt of that role is
                put in front, if it has one.
            prompt: this text in front, whatever the role; ``""`` means none.

        Raises:
            UserError: what is given is no collection of texts; a ``view`` beyond the model.
        """


def as_texts(texts: Any) -> list[str]:
    """The texts as a list, checked one by one: nothing is sized, or returned, before it is there.

    Raises:
        UserError: a table, or anything else that does not hold strings alone.
    """
    if isinstance(texts, list) and all(type(text) is str for text in texts):
        return texts
    if hasattr(texts, "columns") or hasattr(texts, "column_names"):  # pandas, polars, pyarrow, datasets
        raise UserError(
            f"a {type(texts).__name__} is a table, not a list of texts: pass one column, as in table['text']"
        )
    if isinstance(texts, (str, bytes, dict)) or not isinstance(texts, Iterable):
        raise UserError(f"texts must be a list of strings, not a {type(texts).__name__}")
    listed = list(texts)
    for position, text in enumerate(listed):
        if not isinstance(text, str):
            raise UserError(f"text {position} is a {type(text).__name__}, not a string")
    return [str(text) for text in listed]
