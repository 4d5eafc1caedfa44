"""Learned codes: what is packed is what was trained, and a float query finds more with every bit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import ToyModel

from moembed.encoding import truncate
from moembed.evaluation.systems import CachedVectors
from moembed.search.binariser import Bebr, BebrSymmetric, unit
from moembed.search.binariser_training import Recurrence, noisy, ranking_loss, train_binariser
from moembed.search.codecs import (
    CODECS_OF_BITS,
    Binary,
    Int8,
    Projected,
    as_searched,
    codec_kind,
    fit_codec,
    rotation,
)
from moembed.search.product_codes import ProductCodes, RotatedProductCodes
from moembed.types import UserError

DIM = 24


def vectors(rows: int, dim: int = DIM, seed: int = 0, rank: int = 6) -> np.ndarray:
    """Of length 1, about a mean, mostly in few directions, as those of models are."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(99).standard_normal((rank, dim))
    return unit(rng.standard_normal((rows, rank)) @ basis + 0.3 * rng.standard_normal((rows, dim)) + 3)


def bit_balance(code_NB: np.ndarray, dim: int, bits: int) -> float:
    """The mean entropy of a bit among these codes: 1 where half of them have it, 0 where all or none do."""
    planes = np.split(code_NB, bits, axis=1)
    share = np.concatenate([np.unpackbits(plane, axis=-1, count=dim).mean(axis=0) for plane in planes])
    share = np.clip(share, 1e-12, 1 - 1e-12)
    return float(np.mean(-share * np.log2(share) - (1 - share) * np.log2(1 - share)))


@pytest.fixture(scope="module")
def trained() -> Bebr:
    return quickly()


def quickly(seed: int = 0) -> Bebr:
    """In few and large steps."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("moembed.search.binariser_training.LEARNING_RATE", 3e-3)
        return Bebr.fit(vectors(400), bits=2, steps=30, seed=seed)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_without_training_it_is_the_quantiser_that_training_starts_from(bits: int) -> None:
    document_NM = vectors(50)
    off, plain = Bebr.fit(document_NM, bits, steps=0), Bebr.untrained(document_NM, bits)
    assert all(np.array_equal(off.state()[name], plain.state()[name]) for name in plain.state())
    signs_NM = off.directions(document_NM) > 0
    assert np.array_equal(off.encode(document_NM)[:, : DIM // 8], np.packbits(signs_NM, axis=1))


def test_only_a_long_mean_is_taken_away() -> None:
    about_NM = vectors(200)
    mean_M = about_NM.mean(axis=0)
    assert np.linalg.norm(mean_M) > 0.5
    assert np.allclose(Bebr.untrained(about_NM, 1).mean_M, mean_M, atol=1e-6)
    around_NM = unit(about_NM - mean_M)
    plain = Bebr.untrained(around_NM, 1)
    assert not plain.mean_M.any()
    assert np.array_equal(plain.encode(around_NM), Binary.fit(around_NM).encode(around_NM))


def test_every_bit_per_dimension_brings_the_codes_closer() -> None:
    document_NM = vectors(200)
    cosine = []
    for bits in range(1, 6):
        codec = Bebr.untrained(document_NM, bits)
        decoded_NM = codec.decode(codec.encode(document_NM))
        cosine.append(float(np.mean(np.sum(decoded_NM * codec.query(document_NM), axis=1))))
        assert codec.encode(document_NM).nbytes == 200 * codec.bytes_per_vector == 200 * bits * DIM // 8
    assert all(a < b for a, b in pairwise(cosine))
    assert cosine[0] > 0.8
    assert cosine[-1] > 0.99


@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_the_direction_from_the_mean_says_where_a_vector_lies(seed: int, dim: int) -> None:
    document_NM = vectors(9, dim, seed)
    codec = Bebr.untrained(document_NM, 1)
    assert np.allclose(codec.place(codec.directions(document_NM)), codec.query(document_NM), atol=1e-5)
    turned = rotation(dim, seed)
    assert np.allclose(turned @ turned.T, np.eye(dim), atol=1e-5)


def test_codes_are_what_the_training_computes(trained: Bebr) -> None:
    new_NM = vectors(60, seed=5)
    with torch.no_grad():
        value_NM = Recurrence(trained.binarise_UMM, trained.restore_UMM)(
            torch.tensor(trained.directions(new_NM))
        ).numpy()
    assert np.array_equal(trained.values(trained.encode(new_NM)), value_NM)
    assert set(np.unique(value_NM)) == {-1.5, -0.5, 0.5, 1.5}


def test_training_depends_on_documents_and_seed_alone_and_lowers_the_loss(trained: Bebr) -> None:
    again, other = quickly(), quickly(seed=1)
    assert all(np.array_equal(again.state()[name], trained.state()[name]) for name in trained.state())
    assert not np.array_equal(other.binarise_UMM, trained.binarise_UMM)
    before = Bebr.untrained(vectors(400), 2)
    direction = torch.tensor(trained.directions(vectors(300, seed=7)))  # vectors that it did not see
    query = noisy(direction, torch.Generator().manual_seed(0))

    def loss(codec: Bebr) -> float:
        recurrence = Recurrence(codec.binarise_UMM, codec.restore_UMM)
        with torch.no_grad():
            return float(ranking_loss(query, (query, recurrence(query)), direction, recurrence(direction)))

    assert loss(trained) < loss(before) - 0.02


def test_the_loss_is_least_where_codes_rank_as_floats_do() -> None:
    direction = torch.tensor(unit(np.random.default_rng(0).standard_normal((20, 8))))
    target = (direction @ direction.T / 0.05).softmax(dim=1)
    entropy = -(target * target.log()).sum(dim=1).mean()
    torch.testing.assert_close(ranking_loss(direction, [direction], direction, direction), entropy)
    assert ranking_loss(direction, [direction], direction, direction.flip(0)) > entropy + 1


def test_symmetric_scores_are_products_of_whole_numbers(trained: Bebr) -> None:
    codec = BebrSymmetric.from_state(trained.state())
    query_QM, document_NM = vectors(4, seed=3), vectors(30)
    code_QB, code_NB = codec.encode(query_QM), codec.encode(document_NM)
    whole_NM = (2 * codec.values(code_NB)).astype(np.int64)  # odd: -3, -1, 1, 3
    whole_QM = (2 * codec.values(code_QB)).astype(np.int64)
    score_QN = codec.query(query_QM) @ codec.decode(code_NB).T
    assert set(np.unique(whole_NM)) == {-3, -1, 1, 3}
    assert np.array_equal(4 * score_QN, whole_QM @ whole_NM.T)
    asymmetric_QN = trained.query(query_QM) @ trained.decode(code_NB).T
    exact_QN = query_QM @ document_NM.T
    error = [np.abs(one - exact_QN).mean() for one in (asymmetric_QN, score_QN / (1.25 * DIM))]
    assert error[0] < error[1]


def test_bits_are_balanced_by_the_mean() -> None:
    document_NM = vectors(500)
    codec = Bebr.untrained(document_NM, 1)
    centred = bit_balance(codec.encode(document_NM), DIM, 1)
    raw = bit_balance(np.packbits(document_NM > 0, axis=1), DIM, 1)
    assert centred > 0.97 > raw
    assert bit_balance(np.full((9, 2), 255, np.uint8), 8, 2) == pytest.approx(0, abs=1e-9)
    assert bit_balance(np.array([[240], [15]], np.uint8), 8, 1) == pytest.approx(1)


@pytest.mark.parametrize("name", [f"{kind}:{bits}" for kind in CODECS_OF_BITS for bits in (1, 2, 4)])
def test_a_calibration_is_all_that_codes_need(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moembed.search.binariser_training.STEPS", 2)
    document_NM, query_QM = vectors(300), vectors(5, seed=1)
    codec = fit_codec(name, document_NM)
    again = type(codec).from_state(codec.state())
    code_NB = codec.encode(document_NM)
    assert code_NB.dtype == np.uint8
    assert code_NB.nbytes == 300 * codec.bytes_per_vector == 300 * codec_kind(name)[1] * DIM // 8  # type: ignore[operator]
    assert np.array_equal(again.encode(document_NM), code_NB)
    assert np.array_equal(again.decode(code_NB), codec.decode(code_NB))
    assert np.array_equal(again.query(query_QM), codec.query(query_QM))
    seen = as_searched(query_QM, document_NM, name)
    assert np.array_equal(seen.document_NM, codec.decode(code_NB))
    assert codec.encode(document_NM[:0]).shape == code_NB[:0].shape


@pytest.mark.parametrize("kind", [ProductCodes, RotatedProductCodes])
def test_product_codes_are_those_of_faiss(kind: type[ProductCodes]) -> None:
    faiss = pytest.importorskip("faiss")
    document_NM = vectors(400)
    codec = kind.fit(document_NM, bits=2)
    quantiser = faiss.ProductQuantizer(DIM, DIM // 4, 8)
    faiss.copy_array_to_vector(codec.centroid_PCD.ravel(), quantiser.centroids)
    code_NB = codec.encode(document_NM)
    assert np.array_equal(codec.decode(code_NB), quantiser.decode(code_NB))
    turned = codec.rotation_MM if kind.rotates else np.eye(DIM, dtype=np.float32)
    assert np.allclose(turned @ turned.T, np.eye(DIM), atol=1e-4)
    assert np.allclose(codec.query(document_NM), document_NM @ turned.T, atol=1e-6)
    error = np.linalg.norm(codec.decode(code_NB) - codec.query(document_NM), axis=1).mean()
    assert error < 0.35


def test_projections_of_one_bit_are_signs_and_more_come_closer() -> None:
    document_NM, query_QM = vectors(300), vectors(20, seed=1)
    exact_QN = query_QM @ document_NM.T

    def likeness(bits: int) -> float:
        codec = Projected.fit(document_NM, bits)
        score_QN = codec.query(query_QM) @ codec.decode(codec.encode(document_NM)).T
        return float(np.corrcoef(score_QN.ravel(), exact_QN.ravel())[0, 1])

    assert 0.5 < likeness(1) < likeness(4)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("bebr", "1 to 8, as in bebr:2, not 'bebr'"),
        ("bebr:x", "1 to 8, as in bebr:2, not 'bebr:x'"),
        ("pq:9", "1 to 8, as in pq:2, not 'pq:9'"),
        ("int8:4", "has its own number of bits: leave :4 out"),
        ("rabitq:1", "unknown codec 'rabitq:1'; known are float32.*bebr:2"),
    ],
)
def test_a_name_without_meaning_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        codec_kind(name)


def test_what_nothing_can_be_learned_from_is_refused() -> None:
    nothing = np.zeros((0, DIM), np.float32)
    with pytest.raises(UserError, match="bebr learns from documents, and there are none"):
        fit_codec("bebr:2", nothing)
    with pytest.raises(UserError, match="256 centroids from as many vectors at least, and there are 255"):
        fit_codec("pq:2", vectors(255))
    with pytest.raises(UserError, match="pieces of 8 dimensions do not divide 20"):
        fit_codec("pq:1", vectors(300, 20))
    with pytest.raises(UserError, match="1, 2, 4 or 8 bits per dimension, not 3"):
        fit_codec("opq:3", vectors(300))


def test_an_evaluation_calibrates_on_documents_once_and_never_on_queries() -> None:
    known = CachedVectors(ToyModel())
    document_NM = truncate(known.vectors(["a", "b", "c"], role="document").array, 8)
    asked_QM = truncate(known.vectors(["q", "r"], role="query").array, 8)
    smaller = known.smaller("int8", 8)
    query_QM = smaller.vectors(["q", "r"], role="query").array
    assert isinstance(smaller.fitted, Int8)
    assert np.array_equal(smaller.fitted.low_M, document_NM.min(axis=0))
    assert np.array_equal(query_QM, asked_QM)
    fitted = smaller.fitted
    one = smaller.vectors(["a"], role="document").array  # a batch of its own
    assert smaller.fitted is fitted
    assert np.array_equal(one, fitted.decode(fitted.encode(document_NM[:1])))


def test_fewer_vectors_than_a_batch_are_enough() -> None:
    binarise_UMM, restore_UMM = train_binariser(unit(vectors(3)), 2, steps=2)
    assert np.isfinite(binarise_UMM).all()
    assert restore_UMM.shape == (1, DIM, DIM)
