"""Rows of an index, numbered through without those that are deleted, are found in their parts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moembed.search.index_manifest import Part
from moembed.search.index_places import Lengths, Places


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Part], list[tuple[int, int]]]:
    """Parts, and where their rows lie: part and row of each that is not deleted."""
    sizes = draw(st.lists(st.integers(1, 6), max_size=6))
    parts, lie = [], []
    for place, size in enumerate(sizes):
        deleted = draw(st.none() | st.lists(st.booleans(), min_size=size, max_size=size))
        parts.append(Part(place, size, deleted_N=None if deleted is None else np.array(deleted)))
        lie += [(place, row) for row in range(size) if deleted is None or not deleted[row]]
    return parts, lie


@given(problems(), st.data())
def test_every_row_is_found_in_its_part(problem, data) -> None:
    parts, lie = problem
    places = Places(parts)
    assert len(places) == len(lie)
    numbers = st.lists(st.integers(0, len(lie) - 1)) if lie else st.just([])
    index_K = np.array(data.draw(numbers), np.int64)
    for given_K in (index_K, np.sort(index_K)):
        found = [(-1, -1)] * len(given_K)
        for part, where_K, row_K in places.of(given_K):
            for at, row in zip(np.arange(len(given_K))[where_K].tolist(), row_K.tolist(), strict=True):
                found[at] = part, row
        assert found == [lie[number] for number in given_K.tolist()]
    for bad in (-1, len(lie)):
        with pytest.raises(IndexError, match="row numbers must lie in"):
            list(places.of(np.append(index_K, bad)))


@given(problems(), st.data())
def test_lengths_are_computed_for_the_parts_that_are_needed(problem, data) -> None:
    parts, lie = problem
    places, asked = Places(parts), []

    def compute(part: int) -> np.ndarray:
        asked.append(part)
        return 100.0 * part + places.live[part]

    lengths = Lengths(places, compute)
    numbers = data.draw(st.sets(st.integers(0, len(lie) - 1)) if lie else st.just(set()))
    row_K = np.array(sorted(numbers), np.int64)
    for _ in range(2):
        assert lengths.at(row_K).tolist() == [100 * lie[row][0] + lie[row][1] for row in row_K.tolist()]
    assert sorted(asked) == sorted({lie[row][0] for row in row_K.tolist()})
    for part in range(len(parts)):
        assert lengths.of(part).tolist() == [100 * part + row for place, row in lie if place == part]


def test_threads_see_no_length_that_is_not_there_yet() -> None:
    parts = [Part(number, 2000) for number in range(50)]
    for _ in range(5):
        lengths = Lengths(Places(parts), lambda part: np.full(2000, part + 1.0))
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(lambda _, own=lengths: own.at(np.arange(0, 100_000, 9)), range(16)):
                assert found.min() >= 1
