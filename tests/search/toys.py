"""A model whose vectors are written down, or drawn from the hash of a text, and files of pairs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

Row = dict[str, Any]


class ToyModel:
    """``vectors`` by text, others from the hash of prompt and text; ``calls`` lists what was asked."""

    def __init__(
        self, vectors: dict[str, list[float]] | None = None, dim: int = 8, name: str = "toy"
    ) -> None:
        self.dim, self.name = dim, name
        self.vectors = vectors or {}
        self.calls: list[list[str]] = []

    @property
    def encoded(self) -> list[str]:
        return [text for call in self.calls for text in call]

    def role_prompt(self, role: str) -> str | None:
        return None

    def space_id(self, prompt_name: str | None, dim: int) -> str:
        return f"{self.name}-{prompt_name}-{dim}"

    def encode_counted(
        self, texts: list[str], *, prompt_name: str | None, dim: int
    ) -> tuple[np.ndarray, int]:
        self.calls.append(list(texts))
        return np.array([self.vectors.get(text, self._drawn(text)) for text in texts], np.float32), 0

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
