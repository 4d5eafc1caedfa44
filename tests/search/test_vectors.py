"""Texts are embedded once, whatever happens to the process or the folder."""

from __future__ import annotations

import errno
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ToyModel, contents, killed_after

from moembed.search import vectors
from moembed.search.vectors import VectorCache, parts, text_keys
from moembed.types import UserError

TEXTS = [f"text {i}" for i in range(10)]


def open_cache(folder, space="space", dim=8) -> VectorCache:
    return VectorCache(folder, space, dim)


class Encoder:
    def __init__(self) -> None:
        self.model = ToyModel()

    def __call__(self, texts: list[str]) -> np.ndarray:
        return self.model.vectors(texts).array


def encoded(texts: list[str]) -> np.ndarray:
    return Encoder()(texts) if texts else np.zeros((0, 8), np.float32)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(vectors, "SHARD_ROWS", 3)


@settings(max_examples=40)  # every one writes files
@given(st.lists(st.lists(st.sampled_from([*TEXTS, "", "ü", "\ud800"]), max_size=8), max_size=4))
def test_any_calls_give_the_vectors_and_encode_each_text_once(tmp_path_factory, calls):
    folder = tmp_path_factory.mktemp("cache")
    asked: list[str] = []

    def encode(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return encoded([text.encode("utf-8", "replace").decode() for text in texts])

    for texts in calls:
        plain = [text.encode("utf-8", "replace").decode() for text in texts]
        np.testing.assert_array_equal(open_cache(folder).get_or_encode(texts, encode), encoded(plain))
    assert sorted(asked) == sorted({text for texts in calls for text in texts})


def test_one_open_cache_knows_what_it_learnt(tmp_path):
    cache, encode = open_cache(tmp_path), Encoder()
    cache.get_or_encode(TEXTS[:4], encode)
    np.testing.assert_array_equal(cache.get_or_encode(TEXTS[::-1], encode), encoded(TEXTS[::-1]))
    assert encode.model.encoded == [*TEXTS[:4], *TEXTS[:3:-1]]
    assert len(cache) == len(open_cache(tmp_path)) == 10
    np.testing.assert_array_equal(cache.read(text_keys(TEXTS[5:7])), encoded(TEXTS[5:7]))
    assert open_cache(tmp_path).has(text_keys(["text 1", "new"])).tolist() == [True, False]


def test_spaces_do_not_mix(tmp_path):
    open_cache(tmp_path, "a").get_or_encode(TEXTS, Encoder())
    assert len(open_cache(tmp_path, "b")) == 0
    with pytest.raises(UserError, match="8 dimensions, not 4"):
        open_cache(tmp_path, "a", dim=4)


# vectors and hashes of four shards
@pytest.mark.parametrize("replaced", range(8))
def test_a_crash_at_any_write_loses_a_shard_at_most(tmp_path, replaced):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    open_cache(whole).get_or_encode(TEXTS, Encoder())
    with killed_after(replaced):
        open_cache(broken).get_or_encode(TEXTS, Encoder())
    encode = Encoder()
    np.testing.assert_array_equal(open_cache(broken).get_or_encode(TEXTS, encode), encoded(TEXTS))
    assert encode.model.encoded == TEXTS[replaced // 2 * 3 :]
    assert contents(broken) == contents(whole)


@pytest.mark.parametrize("suffix", [".npy", ".keys.npy"])
@pytest.mark.parametrize("kept", [0, 20, -1])
def test_a_torn_shard_is_dropped_with_a_word_and_embedded_again(tmp_path, suffix, kept):
    open_cache(tmp_path).get_or_encode(TEXTS[:3], Encoder())
    open_cache(tmp_path).get_or_encode(TEXTS[3:6], Encoder())
    keys = sorted((tmp_path / "space").glob("*.keys.npy"))[-1]
    torn = keys.with_name(keys.name.removesuffix(".keys.npy") + suffix)
    torn.write_bytes(torn.read_bytes()[:kept])
    with pytest.warns(UserWarning, match="damaged and is dropped"):
        cache = open_cache(tmp_path)
    assert len(cache) == 3
    np.testing.assert_array_equal(cache.get_or_encode(TEXTS[:6], Encoder()), encoded(TEXTS[:6]))
    assert len(open_cache(tmp_path)) == 6


def test_two_processes_may_learn_the_same_text(tmp_path):
    first, second = open_cache(tmp_path), open_cache(tmp_path)
    first.get_or_encode(TEXTS[:5], Encoder())
    second.get_or_encode(TEXTS[2:9], Encoder())
    both = open_cache(tmp_path)
    np.testing.assert_array_equal(both.get_or_encode(TEXTS, Encoder()), encoded(TEXTS))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_told_by_text(tmp_path, bad):
    cache = open_cache(tmp_path)
    model = ToyModel({"text 4": [bad] * 8})

    def encode(texts: list[str]) -> np.ndarray:
        return model.vectors(texts).array

    with pytest.raises(UserError, match="NaN or infinite numbers of row 14"):
        cache.get_or_encode(TEXTS, encode, lambda number: f"row {number + 10}")
    assert len(open_cache(tmp_path)) == 3, "the shard before it stays"


def test_vectors_of_another_shape_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"\(3, 5\) of 3 texts, not \(3, 8\)"):
        open_cache(tmp_path).get_or_encode(TEXTS, lambda texts: np.zeros((len(texts), 5)))


def test_a_full_disk_is_one_sentence(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with patch("os.fsync", side_effect=full), pytest.raises(UserError, match="No space left"):
        open_cache(tmp_path).get_or_encode(TEXTS, Encoder())
    assert contents(tmp_path) == {}


def test_parts_are_all_rows_in_order(monkeypatch):
    monkeypatch.setattr(vectors, "_PART_ROWS", 4)
    stored_NM = encoded(TEXTS)
    np.testing.assert_array_equal(np.concatenate(list(parts(lambda rows: stored_NM[rows], 9))), stored_NM[:9])
