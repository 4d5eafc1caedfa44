"""Models as evaluation sees them: prompts, counts, caches, smaller vectors, and the floor of word vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conftest import TEXTS, MakeModel
from moembed.embedder import Embedder
from moembed.encoding import truncate
from moembed.evaluation.static import StaticEncoder
from moembed.evaluation.systems import CachedEncoder, CachedVectors, MeasuredEncoder


@pytest.fixture
def model(make_model: MakeModel) -> Embedder:
    return make_model(prompts={"query": "what ", "passage": "the ", "STS": "night "}).eval()


@pytest.mark.parametrize(
    ("role", "prompt"),
    [("query", "query"), ("document", "passage"), ("sts", "STS"), ("bitext", None), ("clustering", None)],
)
def test_the_prompt_is_that_of_the_role(model: Embedder, role: str, prompt: str | None) -> None:
    encoder = MeasuredEncoder(model)
    np.testing.assert_array_equal(encoder(TEXTS, role), model.encode(TEXTS, prompt_name=prompt))
    assert encoder.texts == len(TEXTS)
    assert encoder.seconds > 0


def test_a_cache_gives_the_same_vectors_and_counts_what_was_cut_again(
    model: Embedder, tmp_path: Path
) -> None:
    texts = [*TEXTS, "mole " * 600]
    first, second = CachedEncoder(model, tmp_path), CachedEncoder(model, tmp_path)
    seen: list[int] = []
    second.progress = seen.append
    np.testing.assert_array_equal(first(texts, "query"), second(texts, "query"))
    assert (first.texts, second.texts) == (len(texts), 0)
    assert first.truncated == second.truncated == 1
    assert sum(seen) == len(texts)
    second(texts, "document")
    assert second.texts == len(texts)  # another prompt is another space


def test_a_cache_keeps_models_apart(make_model: MakeModel, tmp_path: Path) -> None:
    one, other = make_model(seed=1).eval(), make_model(seed=2).eval()
    CachedEncoder(one, tmp_path)(TEXTS, "query")
    encoder = CachedEncoder(other, tmp_path)
    np.testing.assert_array_equal(encoder(TEXTS, "query"), other.encode_query(TEXTS))


def test_smaller_vectors_come_from_those_remembered(model: Embedder) -> None:
    encoder = MeasuredEncoder(model)
    remembered = CachedVectors(encoder)
    query, document = remembered(TEXTS[:3], "query"), remembered(TEXTS, "document")
    encode, size = remembered.seen_as("float32", 8)
    np.testing.assert_array_equal(encode(TEXTS[:3], "query"), truncate(query, 8))
    np.testing.assert_array_equal(encode(TEXTS, "document"), truncate(document, 8))
    assert size == 4 * 8
    encode, size = remembered.seen_as("binary", 8)
    assert set(np.unique(encode(TEXTS, "document"))) == {-1.0, 1.0}
    np.testing.assert_array_equal(encode(TEXTS[:3], "query"), truncate(query, 8))
    assert size == 1
    assert encoder.texts == len(TEXTS) + 3  # nothing was embedded again


def test_static_vectors_are_weighted_sums_of_centred_word_vectors(model: Embedder) -> None:
    table = model.parts().state["word.weight"].numpy()
    rows, _ = model.tokenizer.rows(["owls hunt voles"])
    inside = rows[0][1:-1]
    expected = sum(np.log1p(token) * (table[token] - table.mean(axis=0)) for token in inside)
    vectors = StaticEncoder(model).vectors(["owls hunt voles", "voles hunt owls", ""], role="query").array
    np.testing.assert_allclose(vectors[0], expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-6)  # a bag of words has no order
    assert not vectors[2].any()
