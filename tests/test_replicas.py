"""Several processes embed as one does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conftest import TEXTS
from moembed.embedder import Embedder
from moembed.encoding import View
from moembed.replicas import Replicas
from moembed.types import UserError


def test_two_processes_give_the_vectors_of_one(moe_model: Embedder, tmp_path: Path) -> None:
    moe_model.save_pretrained(tmp_path / "model")
    texts = [f"{text} {i}" for i in range(150) for text in TEXTS] + ["mole " * 600]
    model = Embedder.from_pretrained(tmp_path / "model")
    expected = model.vectors(texts, role="query")
    seen: list[int] = []
    with Replicas(tmp_path / "model", 2, {"dtype": "float32"}) as copies:
        found = copies.vectors(texts, role="query", progress=seen.append)
        nothing = copies.vectors([], role="query")
        small = copies.vectors(TEXTS, prompt="so ", view=View(layers=2, dim=5))
        assert (copies.dim, copies.max_length) == (model.dim, model.max_length)
        with pytest.raises(UserError, match="dim 99"):
            copies.vectors(TEXTS, view=View(dim=99))
        with pytest.raises(UserError, match="must be a list of strings"):
            copies.vectors("moles")
    # other texts share a product, and a product of other shape may round otherwise
    np.testing.assert_allclose(found.array, expected.array, atol=1e-6)
    assert found.truncated == expected.truncated == 1
    assert found.space == expected.space == nothing.space
    same = model.vectors(TEXTS, prompt="so ", view=View(layers=2, dim=5))
    np.testing.assert_allclose(small.array, same.array, atol=1e-6)
    assert small.space == same.space
    assert sum(seen) == len(texts)
    assert nothing.array.shape == (0, model.dim)


def test_a_process_that_dies_is_one_sentence(moe_model: Embedder, tmp_path: Path) -> None:
    moe_model.save_pretrained(tmp_path / "model")
    with Replicas(tmp_path / "model", 1, {"dtype": "float32"}) as copies:
        assert copies.dim == 16
        (process,) = copies._pool._processes.values()
        process.kill()
        with pytest.raises(UserError, match="died"):
            copies.vectors(["an owl"])


def test_what_a_process_cannot_load_is_said_as_one_process_says_it(tmp_path: Path) -> None:
    with Replicas(tmp_path / "nowhere", 1, {"dtype": "float32"}) as copies:
        for ask in (lambda: copies.vectors(["an owl"]), lambda: copies.dim, lambda: copies.space()):
            with pytest.raises(UserError, match="nowhere does not exist"):
                ask()
