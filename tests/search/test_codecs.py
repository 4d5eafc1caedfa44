"""Codes give back what they can hold, pack what they say, and cost what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moembed.encoding import truncate
from moembed.search.codecs import CODECS, Binary, Float16, Int8, as_searched
from moembed.search.exact import top_k
from moembed.types import UserError

NUMBER = st.floats(-1, 1, width=32)
VECTORS = st.tuples(st.integers(1, 6), st.integers(1, 20)).flatmap(
    lambda shape: arrays("f4", shape, elements=NUMBER)
)


def random(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    vector_NM = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return vector_NM / np.linalg.norm(vector_NM, axis=1, keepdims=True)


@given(VECTORS)
def test_float32_is_exact_and_float16_within_half_a_unit_of_its_last_place(vector_NM: np.ndarray) -> None:
    codec = CODECS["float32"].fit(vector_NM)
    assert np.array_equal(codec.decode(codec.encode(vector_NM)), vector_NM)
    error_NM = np.abs(Float16.fit(vector_NM).decode(Float16.fit(vector_NM).encode(vector_NM)) - vector_NM)
    assert (error_NM <= 2**-11 * np.abs(vector_NM) + 2**-25).all()


@given(VECTORS)
def test_int8_is_half_a_step_off_at_most(vector_NM: np.ndarray) -> None:
    codec = Int8.fit(vector_NM)
    error_NM = np.abs(codec.decode(codec.encode(vector_NM)) - vector_NM)
    assert (error_NM <= 0.5 * codec.step_M * (1 + 1e-3) + 1e-6).all()
    still = np.ptp(vector_NM, axis=0) == 0
    assert (error_NM[:, still] == 0).all()


@given(VECTORS, arrays("f4", 8, elements=st.floats(-3, 3, width=32)))
def test_int8_keeps_the_order_of_values_and_cuts_what_lies_outside(
    document_NM: np.ndarray, value_N: np.ndarray
) -> None:
    codec = Int8.fit(document_NM)
    column_NM = np.repeat(np.sort(value_N)[:, None], document_NM.shape[1], axis=1)
    code_NM = codec.encode(column_NM).astype(int)
    assert (np.diff(code_NM, axis=0) >= 0).all()
    moves = codec.step_M > 0
    below_NM, above_NM = column_NM < document_NM.min(axis=0), column_NM > document_NM.max(axis=0)
    assert (code_NM[below_NM & moves] == -128).all()
    assert (code_NM[above_NM & moves] >= 126).all()


@given(VECTORS)
def test_binary_packs_the_signs(vector_NM: np.ndarray) -> None:
    codec = Binary.fit(vector_NM)
    code_NB = codec.encode(vector_NM)
    dim = vector_NM.shape[1]
    for row, bits in zip(vector_NM, code_NB, strict=True):
        text = "".join(f"{byte:08b}" for byte in bits)
        assert text[:dim] == "".join("1" if x > 0 else "0" for x in row)
        assert set(text[dim:]) <= {"0"}
    assert np.array_equal(codec.decode(code_NB), np.where(vector_NM > 0, 1, -1))


@given(VECTORS, st.sampled_from(sorted(CODECS)))
def test_a_code_takes_the_bytes_it_says(vector_NM: np.ndarray, name: str) -> None:
    codec = CODECS[name].fit(vector_NM)
    code_NB = codec.encode(vector_NM)
    assert code_NB.nbytes == len(vector_NM) * codec.bytes_per_vector
    decoded_NM = codec.decode(code_NB)
    assert (decoded_NM.shape, str(decoded_NM.dtype)) == (vector_NM.shape, "float32")
    if name != "int8":  # whose steps may be finer than a float32
        assert np.array_equal(codec.encode(decoded_NM), code_NB), "nothing more is lost the second time"


@pytest.mark.parametrize(("name", "precision"), [("int8", "int8"), ("binary", "ubinary")])
def test_the_codes_of_sentence_transformers(name: str, precision: str) -> None:
    quantization = pytest.importorskip("sentence_transformers.util.quantization")
    document_NM, query_QM = random(300, 37), random(20, 37, seed=1)
    codec = CODECS[name].fit(document_NM)
    for vector_NM in (document_NM, query_QM):
        theirs = quantization.quantize_embeddings(vector_NM, precision, calibration_embeddings=document_NM)
        assert theirs.dtype == codec.encode(vector_NM).dtype
        assert np.array_equal(codec.encode(vector_NM), theirs)


@given(VECTORS, st.data())
def test_a_prefix_is_a_unit_vector_again(vector_NM: np.ndarray, data: st.DataObject) -> None:
    dim = data.draw(st.integers(1, vector_NM.shape[1]))
    cut_NM = truncate(vector_NM, dim)
    norm_N = np.linalg.norm(vector_NM[:, :dim].astype(np.float64), axis=1)
    expected_N = np.where(norm_N > 1e-18, 1, np.linalg.norm(cut_NM, axis=1))  # the squares of less underflow
    np.testing.assert_allclose(np.linalg.norm(cut_NM, axis=1), expected_N, rtol=1e-5)
    np.testing.assert_allclose(cut_NM * norm_N[:, None], vector_NM[:, :dim] * expected_N[:, None], atol=1e-6)
    assert truncate(vector_NM, None) is vector_NM


def test_a_view_is_what_each_side_of_the_search_sees() -> None:
    document_NM, query_QM = random(50, 24), random(5, 24, seed=1)
    plain = as_searched(query_QM, document_NM)
    assert plain.query_QM is query_QM
    assert np.array_equal(plain.document_NM, document_NM)
    for name, size in {"float32": 64, "float16": 32, "int8": 16, "binary": 2}.items():
        seen = as_searched(query_QM, document_NM, name, 16)
        assert seen.bytes_per_vector == size
        assert np.array_equal(seen.query_QM, truncate(query_QM, 16)), "queries are not stored"
    assert set(np.unique(seen.document_NM)) == {-1, 1}
    both = as_searched(query_QM, document_NM, "binary-symmetric", 16)
    assert set(np.unique(both.query_QM)) == {-1, 1}
    assert np.array_equal(both.document_NM, seen.document_NM)


def test_symmetric_binary_search_is_in_the_order_of_hamming_distances() -> None:
    document_NM, query_QM = random(200, 64), random(9, 64, seed=1)
    seen = as_searched(query_QM, document_NM, "binary-symmetric")
    ranked_QK = top_k(seen.query_QM, seen.document_NM, 200).index
    codec = Binary.fit(document_NM)
    code_QB, code_NB = codec.encode(query_QM), codec.encode(document_NM)
    distance_QN = np.unpackbits(code_QB[:, None] ^ code_NB[None], axis=-1).sum(axis=-1)
    assert (np.diff(np.take_along_axis(distance_QN.astype(int), ranked_QK, axis=1), axis=1) >= 0).all()


def test_finer_codecs_find_more_of_what_floats_find() -> None:
    document_NM, query_QM = random(500, 64), random(40, 64, seed=1)
    found = top_k(query_QM, document_NM, 10).index

    def kept(name: str) -> float:
        seen = as_searched(query_QM, document_NM, name)
        again = top_k(seen.query_QM, seen.document_NM, 10).index
        return float(np.mean([len(set(a) & set(b)) for a, b in zip(found, again, strict=True)])) / 10

    shares = [kept(name) for name in ("binary-symmetric", "binary", "int8", "float16", "float32")]
    assert shares == sorted(shares)
    assert shares[0] < shares[1] < 0.6 < 0.9 < shares[2]
    assert shares[-1] == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("int4",), "unknown codec 'int4'; known are float32"),
        (("int8", 0), r"dim 0 is not within 1\.\.8"),
        (("int8", 9), r"dim 9 is not within 1\.\.8"),
    ],
)
def test_what_does_not_exist_is_refused(arguments: tuple[object, ...], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        as_searched(random(2, 8), random(3, 8), *arguments)  # type: ignore[arg-type]


def test_ranges_need_documents() -> None:
    with pytest.raises(UserError, match="takes its ranges from documents, and there are none"):
        as_searched(random(2, 8), np.zeros((0, 8), dtype=np.float32), "int8")
