"""A text encoder made of a function, for tests whose vectors are written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from moembed.encoding import FULL, Progress, Vectors, View


class FunctionEncoder:
    """``function(texts, role)`` gives the vectors."""

    dim, max_length = 1, None

    def __init__(self, function: Callable[[list[str], str], np.ndarray]) -> None:
        self.function = function

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        return "written-down"

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        return Vectors(self.function(list(texts), role or ""), 0, self.space())
