"""A model without layers: its texts are the numbers of vectors that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from moembed.encoding import FULL, Progress, Vectors, View


class Numbered:
    """Texts begin with a number; ``vectors_of`` gives the vectors of numbers, float32 ``(N, dim)``."""

    max_length = None

    def __init__(self, name: str, dim: int, vectors_of: Callable[[np.ndarray], np.ndarray]) -> None:
        self.name, self.dim, self.vectors_of = name, dim, vectors_of

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        return self.name

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        number_N = np.array([int(text.split()[0]) for text in texts])
        return Vectors(self.vectors_of(number_N), 0, self.space())
