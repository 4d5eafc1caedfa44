"""A model whose vectors are written down, or drawn from the hash of a text, and files of pairs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from moembed.encoding import FULL, Progress, Vectors, View

Row = dict[str, Any]


class ToyModel:
    """``vectors`` by text, others from the hash of prompt and text; ``calls`` lists what was asked."""

    def __init__(
        self, vectors: dict[str, list[float]] | None = None, dim: int = 8, name: str = "toy"
    ) -> None:
        self.dim, self.name, self.max_length = dim, name, None
        self.known = vectors or {}
        self.calls: list[list[str]] = []

    @property
    def encoded(self) -> list[str]:
        return [text for call in self.calls for text in call]

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        return f"{self.name}-{prompt}-{view.dim or self.dim}"

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
    ) -> Vectors:
        listed = [(prompt or "") + text for text in texts]
        self.calls.append(listed)
        array = np.array([self.known.get(text, self._drawn(text)) for text in listed], np.float32)
        return Vectors(array, 0, self.space(role=role, prompt=prompt, view=view))

    def _drawn(self, text: str) -> list[float]:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
        return np.random.default_rng(seed).standard_normal(self.dim).tolist()


class Killed(BaseException):
    """Unlike an OSError, nothing cleans up after it."""


def write_jsonl(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read_jsonl(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@contextmanager
def killed_after(replaced: int) -> Iterator[list[Path]]:
    """What runs inside must die at the next file that takes its name after so many; yields those it tried."""
    real, tried = os.replace, []

    def replace(temporary: Path, path: Path) -> None:
        tried.append(path)
        if len(tried) > replaced:
            raise Killed
        real(temporary, path)

    with patch("os.replace", replace):
        try:
            yield tried
        except Killed:
            return
    raise AssertionError(f"it lived through {len(tried)} files")
