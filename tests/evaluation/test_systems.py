"""Models as evaluation sees them: prompts, counts, caches, smaller vectors, and the floor of word vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from conftest import TEXTS, MakeModel
from moembed.embedder import Embedder
from moembed.encoding import Vectors, truncate
from moembed.evaluation.static import StaticEncoder
from moembed.evaluation.systems import CachedEncoder, CachedVectors, KeepsDocuments, MeasuredEncoder


@pytest.fixture
def model(make_model: MakeModel) -> Embedder:
    return make_model(prompts={"query": "what ", "passage": "the ", "STS": "night "}).eval()


@pytest.mark.parametrize(
    ("role", "prompt"),
    [("query", "query"), ("document", "passage"), ("sts", "STS"), ("bitext", None), ("clustering", None)],
)
def test_the_prompt_is_that_of_the_role(model: Embedder, role: str, prompt: str | None) -> None:
    encoder = MeasuredEncoder(model)
    np.testing.assert_array_equal(
        encoder.vectors(TEXTS, role=role).array, model.encode(TEXTS, prompt_name=prompt)
    )
    assert encoder.texts == len(TEXTS)
    assert encoder.seconds > 0


def test_a_cache_gives_the_same_vectors_and_counts_what_was_cut_again(
    model: Embedder, tmp_path: Path
) -> None:
    texts = [*TEXTS, "mole " * 600]
    first, second = CachedEncoder(model, tmp_path), CachedEncoder(model, tmp_path)
    seen: list[int] = []
    expected = first.vectors(texts, role="query").array
    found = second.vectors(texts, role="query", progress=seen.append).array
    np.testing.assert_array_equal(expected, found)
    assert (first.texts, second.texts) == (len(texts), 0)
    assert first.truncated == second.truncated == 1
    assert sum(seen) == len(texts)
    second.vectors(texts, role="document")
    assert second.texts == len(texts)  # another prompt is another space


def test_a_cache_keeps_models_apart(make_model: MakeModel, tmp_path: Path) -> None:
    one, other = make_model(seed=1).eval(), make_model(seed=2).eval()
    CachedEncoder(one, tmp_path).vectors(TEXTS, role="query")
    encoder = CachedEncoder(other, tmp_path)
    np.testing.assert_array_equal(encoder.vectors(TEXTS, role="query").array, other.encode_query(TEXTS))


def test_a_cache_keeps_the_ends_of_long_texts_apart(model: Embedder, tmp_path: Path) -> None:
    texts = ["mole " * 40 + "owl " * 40]
    CachedEncoder(model, tmp_path).vectors(texts, role="query")
    model.tokenizer.truncation_side = "left"
    found = CachedEncoder(model, tmp_path).vectors(texts, role="query").array
    np.testing.assert_array_equal(found, model.vectors(texts, role="query").array)


def test_smaller_vectors_come_from_those_known(model: Embedder) -> None:
    encoder = MeasuredEncoder(model)
    known = CachedVectors(encoder)
    query = known.vectors(TEXTS[:3], role="query").array
    document = known.vectors(TEXTS, role="document").array
    small = known.smaller("float32", 8)
    np.testing.assert_array_equal(small.vectors(TEXTS[:3], role="query").array, truncate(query, 8))
    np.testing.assert_array_equal(small.vectors(TEXTS, role="document").array, truncate(document, 8))
    assert (small.dim, small.bytes_per_vector) == (8, 4 * 8)
    bits = known.smaller("binary", 8)
    assert set(np.unique(bits.vectors(TEXTS, role="document").array)) == {-1.0, 1.0}
    np.testing.assert_array_equal(bits.vectors(TEXTS[:3], role="query").array, truncate(query, 8))
    assert bits.bytes_per_vector == 1
    assert len({one.space(role="document") for one in (model, small, bits)}) == 3
    assert encoder.texts == len(TEXTS) + 3  # nothing was embedded again


class Given:
    """An encoder whose vectors are given, by the numbers that the texts are."""

    def __init__(self, vector_NM: np.ndarray) -> None:
        self.vector_NM, self.dim, self.max_length = vector_NM, vector_NM.shape[1], None

    def space(self, **_: object) -> str:
        return "given"

    def vectors(self, texts: list[str], **_: object) -> Vectors:
        return Vectors(self.vector_NM[[int(text) for text in texts]], 0, "given")


@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "binary", "binary-symmetric", "lsh:2"])
def test_a_text_without_a_token_scores_0_in_every_codec(codec: str) -> None:
    array = np.random.default_rng(0).standard_normal((9, 8)).astype(np.float32)
    array[4] = 0
    known = CachedVectors(Given(array))
    known.vectors([str(row) for row in range(9)], role="document")
    small = known.smaller(codec, 8)
    for role in ("document", "query"):
        seen = small.vectors([str(row) for row in range(9)], role=role).array
        assert np.flatnonzero(~seen.any(axis=1)).tolist() == [4]
        assert seen.dtype == np.float32


def test_documents_are_kept_until_others_come(model: Embedder) -> None:
    encoder = KeepsDocuments(model)
    for _ in range(2):
        encoder.vectors(TEXTS, role="document")
        encoder.vectors(TEXTS, role="query")
    np.testing.assert_array_equal(encoder.documents, model.encode_document(TEXTS))
    assert encoder.texts == 3 * len(TEXTS)
    encoder.vectors(TEXTS[:2], role="document")
    assert len(encoder.documents) == 2
    assert encoder.texts == 3 * len(TEXTS) + 2


def test_static_vectors_are_weighted_sums_of_centred_word_vectors(model: Embedder) -> None:
    table = model.parts().state["word.weight"].numpy()
    rows, _ = model.tokenizer.rows(["owls hunt voles"])
    inside = rows[0][1:-1]
    expected = sum(np.log1p(token) * (table[token] - table.mean(axis=0)) for token in inside)
    vectors = StaticEncoder(model).vectors(["owls hunt voles", "voles hunt owls", ""], role="query").array
    np.testing.assert_allclose(vectors[0], expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-6)  # a bag of words has no order
    assert not vectors[2].any()


def test_static_vectors_of_a_tokenizer_without_special_tokens(model: Embedder) -> None:
    backend = Backend.from_str(model.tokenizer.backend.to_str())
    backend.post_processor = processors.Sequence([])
    model.tokenizer = model.tokenizer.replaced(backend=backend)
    found = StaticEncoder(model).vectors(["owls", "", "voles"]).array
    assert found.any(axis=1).tolist() == [True, False, True]
    assert not StaticEncoder(model).vectors([""]).array.any()
