"""The encodings of MUVERA: a slow loop, bounds by MaxSim, and a search that finds what MaxSim finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moembed.encoding import TokenVectors
from moembed.search import fde
from moembed.search.fde import Fde, FdeConfig, gray_bits, gray_number
from moembed.search.late_search import best_products, late_search, maxsim_scores
from moembed.types import UserError

WIDTH = 6


def tokens(lengths: list[int], seed: int) -> TokenVectors:
    drawn = np.random.default_rng(seed).standard_normal((sum(lengths), WIDTH)).astype(np.float32)
    return TokenVectors(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.array(lengths, np.int64))


def slow(encoding: Fde, vectors: np.ndarray, is_document: bool) -> np.ndarray:
    """The paper's definition for one text: token by token, partition by partition, plane by plane."""
    config, blocks = encoding.config, []
    for r in range(config.repetitions):

        def project(vector: np.ndarray, r: int = r) -> np.ndarray:
            return vector if encoding.sign_RMP is None else vector @ encoding.sign_RMP[r]

        sides = [[float(v @ encoding.plane_RMK[r][:, j]) > 0 for j in range(config.k_sim)] for v in vectors]
        for number in range(2**config.k_sim):
            code = number ^ (number >> 1)
            wanted = [bool(code >> (config.k_sim - 1 - j) & 1) for j in range(config.k_sim)]
            inside = [project(v) for v, side in zip(vectors, sides, strict=True) if side == wanted]
            block = np.zeros(config.d_proj or WIDTH)
            if inside:
                block = np.sum(inside, axis=0) / (len(inside) if is_document else 1)
            elif is_document:
                apart = [sum(a != b for a, b in zip(side, wanted, strict=True)) for side in sides]
                block = project(vectors[apart.index(min(apart))])
            blocks.append(block / np.sqrt(config.repetitions))
    whole = np.concatenate(blocks)
    if not config.final_dim:
        return whole
    found = np.zeros(config.final_dim)
    for value, place, sign in zip(whole, encoding.place_F, encoding.sketch_F, strict=True):
        found[place] += sign * value
    return found


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.builds(
        FdeConfig,
        token_dim=st.just(WIDTH),
        repetitions=st.integers(1, 3),
        k_sim=st.integers(0, 4),
        d_proj=st.sampled_from([0, 1, 4]),
        final_dim=st.sampled_from([0, 1]),
        seed=st.integers(0, 3),
    ),
)
def test_it_is_the_definition_token_by_token(lengths: list[int], config: FdeConfig) -> None:
    encoding, given_ = Fde(config), tokens(lengths, 1)
    for fast, is_document in ((encoding.documents, True), (encoding.queries, False)):
        found = fast(given_)
        assert found.shape == (len(lengths), config.dim)
        for one, vectors in zip(found, given_, strict=True):
            np.testing.assert_allclose(one, slow(encoding, vectors, is_document), atol=1e-5)


def test_a_sketch_adds_every_coordinate_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = FdeConfig(WIDTH, repetitions=3, k_sim=2, d_proj=4, final_dim=16)
    encoding, given_ = Fde(config), tokens([3, 1, 5], 2)
    whole = encoding.documents(given_)
    for one, vectors in zip(whole, given_, strict=True):
        np.testing.assert_allclose(one, slow(encoding, vectors, True), atol=1e-5)
    monkeypatch.setattr(fde, "_TOKENS", 2)  # texts a few at a time, one longer than a block
    # a product of other rows may round otherwise, by the last bits of numbers of size 1
    np.testing.assert_allclose(encoding.documents(given_), whole, rtol=1e-5, atol=1e-6)


def test_queries_and_documents_draw_the_same_numbers() -> None:
    """And they are those of every NumPy: an index of another year is searched with the same planes."""
    one, other = Fde(FdeConfig(4, d_proj=4, seed=7)), Fde(FdeConfig(4, d_proj=4, seed=7))
    np.testing.assert_array_equal(one.plane_RMK, other.plane_RMK)
    np.testing.assert_allclose(one.plane_RMK[0, 0, :2], [1.6905257, -0.46593738], rtol=1e-6)
    assert not np.array_equal(one.plane_RMK, Fde(FdeConfig(4, d_proj=4, seed=8)).plane_RMK)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(1, 4), st.integers(0, 4))
def test_without_a_projection_no_product_is_above_the_score(lengths: list[int], query: int, k: int) -> None:
    """A mean of tokens, or one of them, is never nearer to a query's token than the nearest."""
    encoding = Fde(FdeConfig(WIDTH, repetitions=3, k_sim=k, d_proj=0))
    documents, queries = tokens(lengths, 3), tokens([query], 4)
    product_N = (encoding.queries(queries) @ encoding.documents(documents).T)[0]
    score_N = maxsim_scores(queries[0], documents) * query
    assert (product_N <= score_N + 1e-5).all()
    if lengths == [1]:  # the mean of one token is that token
        np.testing.assert_allclose(product_N, score_N, atol=1e-5)


def test_many_planes_and_repetitions_come_near_the_score() -> None:
    """Of queries whose tokens are noisy ones of a document, as questions are: the error falls with k."""
    rng = np.random.default_rng(5)
    documents = tokens([8] * 40, 6)
    noisy = np.concatenate([documents[i][:4] for i in range(40)]) + 0.1 * rng.standard_normal((160, WIDTH))
    noisy = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)
    queries = TokenVectors(noisy, np.full(40, 4))
    score_QN = np.stack([maxsim_scores(query, documents) * 4 for query in queries])

    def error(**changes: int) -> float:
        encoding = Fde(FdeConfig(WIDTH, **{"repetitions": 30, "d_proj": 0} | changes))
        product_QN = encoding.queries(queries) @ encoding.documents(documents).T
        return float(np.abs(product_QN - score_QN).diagonal().mean())

    errors = [error(k_sim=k) for k in (0, 2, 4)]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]
    projected = Fde(FdeConfig(WIDTH, repetitions=400, k_sim=4, d_proj=4))
    product_QN = projected.queries(queries) @ projected.documents(documents).T
    whole = Fde(FdeConfig(WIDTH, repetitions=400, k_sim=4, d_proj=0))
    expected = whole.queries(queries) @ whole.documents(documents).T
    assert np.abs(product_QN - expected).mean() < 0.15  # a projection is right in the mean

    encoding = Fde(FdeConfig(WIDTH, repetitions=10, k_sim=3, d_proj=0))
    candidates = best_products(encoding.queries(queries), [encoding.documents(documents)], 10)
    found = late_search(queries, candidates, lambda row_K: _take(documents, row_K), 3)
    np.testing.assert_array_equal(found.index[:, 0], score_QN.argmax(1))
    np.testing.assert_allclose(found.score[:, 0], score_QN.max(1) / 4, atol=1e-5)


def _take(given_: TokenVectors, row_K: np.ndarray) -> TokenVectors:
    return TokenVectors(np.concatenate([given_[i] for i in row_K]), given_.length_N[row_K])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 12))
def test_the_largest_products_are_found_whatever_the_parts(sizes: list[int], count: int) -> None:
    rng = np.random.default_rng(len(sizes) + count)
    parts = [rng.standard_normal((size, 3)).astype(np.float32) for size in sizes]
    query_QF = rng.standard_normal((2, 3)).astype(np.float32)
    found = best_products(query_QF, parts, count)
    expected = np.argsort(-(query_QF @ np.concatenate(parts).T), axis=1)[:, :count]
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(expected, axis=1))


def test_numbers_of_partitions_are_gray_codes() -> None:
    number = np.arange(4096)
    bits = gray_bits(number)
    np.testing.assert_array_equal(gray_number(bits), number)
    assert {bin(apart).count("1") for apart in (bits[1:] ^ bits[:-1]).tolist()} == {1}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("repetitions=0", r"repetitions .* 1\.\.1024, not 0"),
        ("k_sim=13", r"k_sim .* 0\.\.12, not 13"),
        ("k_sim=99999999999999", r"k_sim .* 0\.\.12, not 99999999999999"),
        ("d_proj=7", r"d_proj .* 0\.\.6, not 7"),
        ("final_dim=99999", "final_dim"),
        ("planes=3", "'planes=3' is no setting"),
        ("k_sim", "'k_sim' is no setting"),
    ],
)
def test_settings_out_of_range_are_one_sentence(values: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        FdeConfig.parse(values, WIDTH)


def test_documents_are_encoded_with_numpy_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(np, "bitwise_count", raising=False)  # NumPy 2 alone has it
    config = FdeConfig(WIDTH, repetitions=2, k_sim=3, d_proj=2)
    some = tokens([2, 5], 1)
    found = Fde(config).documents(some)
    for text, vectors in enumerate(some):
        np.testing.assert_allclose(found[text], slow(Fde(config), vectors, True), atol=1e-5)


def test_settings_by_name_and_what_cannot_be_encoded() -> None:
    assert FdeConfig.parse("k_sim=3, seed=9", WIDTH) == FdeConfig(WIDTH, k_sim=3, d_proj=6, seed=9)
    value: dict[str, Any] = FdeConfig(WIDTH, k_sim=3, d_proj=2).as_json()
    assert FdeConfig.from_json(value) == FdeConfig(WIDTH, k_sim=3, d_proj=2)
    encoding = Fde(FdeConfig(WIDTH, d_proj=4))
    with pytest.raises(UserError, match=r"document 1 .* has no token"):
        encoding.documents(tokens([2, 0], 0))
    assert not encoding.queries(tokens([0], 0)).any()
    with pytest.raises(UserError, match="tokens have 3 coordinates, the encoding takes 6"):
        encoding.queries(TokenVectors(np.ones((1, 3), np.float32), np.array([1])))
