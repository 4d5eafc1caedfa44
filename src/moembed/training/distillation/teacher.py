"""The vectors of a teacher, each computed once and kept in a folder.

A vector is found by the hash of its text, in a sub-folder that is named after the teacher's space, and so
after its weights and its prompt. ``teacher.json`` says whose vectors the folder holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from moembed.encoding import TextEncoder
from moembed.files import read_json, write_json
from moembed.search.vectors import SHARD_ROWS, VectorCache, text_keys
from moembed.types import UserError

ROLES = ("query", "document")
_OWNER = "teacher.json"


class TeacherVectors:
    """Vectors by text and role: any text encoder, seen through its two roles.

    Attributes:
        dim: coordinates of a vector.
        spaces: of each role, the name of the space; equal where the teacher makes no difference.
        truncated: texts embedded now that were longer than the teacher reads.

    Raises:
        UserError: the folder holds vectors of another teacher.
    """

    def __init__(self, encoder: TextEncoder, folder: str | Path) -> None:
        self._encoder, self._folder = encoder, Path(folder)
        self.dim = encoder.dim
        self.spaces: Mapping[str, str] = {role: encoder.space(role=role) for role in ROLES}
        self.truncated = 0
        self._claim()
        self._caches = {space: VectorCache(folder, space, self.dim) for space in self.spaces.values()}

    def fill(self, texts: Sequence[str], role: str, progress: Callable[[int], object]) -> None:
        """Embed the texts whose vectors are not there yet; ``progress`` is told the number of texts done."""

        def encode(some: list[str]) -> np.ndarray:
            found = self._encoder.vectors(some, role=role)
            self.truncated += found.truncated
            return found.array

        cache = self._caches[self.spaces[role]]
        for start in range(0, len(texts), SHARD_ROWS):
            some = texts[start : start + SHARD_ROWS]
            cache.get_or_encode(some, encode)
            progress(len(some))

    def read(self, texts: Sequence[str], role: str) -> np.ndarray:
        """The vectors of texts that were filled in: float32 ``(len(texts), dim)``."""
        return self._caches[self.spaces[role]].read(text_keys(texts))

    def _claim(self) -> None:
        """Refuse the cache of another teacher, by name: its vectors would never be read, and mislead."""
        file, mine = self._folder / _OWNER, {"dim": self.dim, **self.spaces}
        if not file.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(file, mine)
        elif read_json(file) != mine:
            raise UserError(
                f"the cache {self._folder} holds vectors of another teacher, or of one with other prompts: "
                "name another folder as cache, or delete this one"
            )
