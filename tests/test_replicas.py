"""Several processes embed as one does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conftest import TEXTS
from moembed.embedder import Embedder
from moembed.replicas import Replicas
from moembed.types import UserError


def test_two_processes_give_the_vectors_of_one(moe_model: Embedder, tmp_path: Path) -> None:
    moe_model.save_pretrained(tmp_path / "model")
    texts = [f"{text} {i}" for i in range(150) for text in TEXTS] + ["mole " * 600]
    expected, truncated = Embedder.from_pretrained(tmp_path / "model").encode_counted(texts, "query")
    seen: list[int] = []
    with Replicas(tmp_path / "model", 2, {"dtype": "float32"}) as copies:
        vectors, cut = copies.encode_counted(texts, "query", progress=seen.append)
        nothing, _ = copies.encode_counted([], "query")
        with pytest.raises(UserError, match="nobody"):
            copies.encode_counted(TEXTS, "nobody")
    # other texts share a product, and a product of other shape may round otherwise
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert cut == truncated == 1
    assert sum(seen) == len(texts)
    assert len(nothing) == 0


def test_a_process_that_dies_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="died"),
        Replicas(tmp_path / "nowhere", 1, {"dtype": "float32"}) as copies,
    ):
        copies.encode_counted(["an owl"])
